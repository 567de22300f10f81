"""VcEdit's view consistency for any 2D editor of a Gaussian scene.

An editor that treats each view of a scene by itself contradicts itself from view to view. VcEdit
(Wang et al., ECCV 2024) makes views agree inside the editor's sampling loop, through the scene:
attention maps are lifted to the Gaussians and rendered back, and so are the predicted images.

    from pyext.scene import load
    from pyext_plugins.vcedit.attention import AttentionMaps  # the extra `diffusers`
    from pyext_plugins.vcedit.cameras import load_cameras
    from pyext_plugins.vcedit.consistency import ViewConsistency
    from pyext_plugins.vcedit.lifting import lift, render_maps

    scene, cameras = load("scene.ply"), load_cameras("cameras.json")
    lifted = lift(masks, cameras, scene)  # [V, H, W, D] -> one row per Gaussian
    again = render_maps(lifted, cameras, scene)  # [V, H, W, D], the same from every side

    consistency = ViewConsistency(scene, cameras)
    with AttentionMaps(unet) as attention:
        for step in range(1, 16):
            unet(...)  # records the cross-attention maps
            attention.substitutes = consistency.on_attention(step, attention.recorded)
            ...  # denoise with them, decode the predicted images
            images = consistency.on_prediction(step, images)

`pyext vcedit edit` runs the whole loop of rendering, editing and fitting with your own editor.
"""

from pyext.methods import Method

METHOD = Method(
    name="vcedit",
    summary="Make a 2D editor treat all views of a Gaussian scene alike.",
    paper="Wang et al. 2024, View-Consistent 3D Editing with Gaussian Splatting, arXiv 2403.11868",
    ops=("splat",),
    extra="vcedit",
    demo="pyext_plugins.vcedit.demo:demo",
    commands="pyext_plugins.vcedit.app:app",
)
