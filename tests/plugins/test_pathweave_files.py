"""Q-Formers with paths, their files, LoRA for peft, and the authors' checkpoints."""

import json
import warnings

import pytest
import torch
from pyext_plugins.pathweave.authors import load_authors
from pyext_plugins.pathweave.files import CONFIG, WEIGHTS, load_paths, save_paths
from pyext_plugins.pathweave.lora import export_lora
from pyext_plugins.pathweave.model import PathWeave
from pyext_plugins.pathweave.qformers import qformer_sites
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from pyext.errors import UserError
from tests.plugins.pathweave_models import (
    ENCODER,
    HIDDEN,
    KINDS,
    SMALL,
    inputs,
    loss_of,
    qformer,
    run,
    stir,
    train,
    transformers,
    two_layers,
    woven,
)

ORDER = ("video", "audio", "depth")


def learned(names=ORDER, kind="Blip2", rank=2, **more):
    model = woven(kind)
    for seed, name in enumerate(names):
        model.add_modality(name, rank=rank, **more)
        stir(model, name, seed)
    return model


def test_sites_and_sizes_are_those_of_the_card():
    with torch.device("meta"):
        qformer_of_blip2 = transformers.Blip2QFormerModel(transformers.Blip2QFormerConfig())
    sites = qformer_sites(qformer_of_blip2)
    assert len(sites) == 72 and len(set(sites)) == 72
    assert sum("crossattention" in site for site in sites) == 24
    assert not any("intermediate" in site for site in sites)
    model = PathWeave(qformer_of_blip2, sites)
    for name, gates, inner in (
        ("video", 0, 0),
        ("audio", 251_904, 5_184),
        ("depth", 377_856, 10_368),
        ("pc", 503_808, 15_552),
    ):
        model.add_modality(name, rank=8)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert sum(parameter.numel() for parameter in trained) == 1_002_120 + gates + inner
    with pytest.raises(ValueError, match="model: expected a Q-Former, Sequential holds none"):
        qformer_sites(two_layers())
    with pytest.raises(
        ValueError, match="projection: Blip2QFormerModel has no language_projection"
    ):
        qformer_sites(qformer(), projection=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_qformer_learns_and_its_earlier_paths_stay(kind):
    model, bare, given = woven(kind), qformer(kind), inputs()
    assert torch.equal(run(model, given), run(PathWeave(bare, qformer_sites(bare)), given))
    outputs = {}
    for name in ("video", "audio"):
        model.add_modality(name, rank=2)
        before = run(model, given).detach()
        train(model, lambda: run(model, given))
        outputs[name] = run(model, given).detach()
        assert not torch.allclose(outputs[name], before)
    model.set_modality("video")
    assert torch.equal(run(model, given), outputs["video"])


def test_values_of_a_cross_attention_have_an_effect():
    # In the authors' code, those of the last modality are added to keys used already.
    model, given = learned(), inputs()
    site = "encoder.layer.0.crossattention.attention.value"
    model.train()
    loss_of(run(model, given)).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.stage(site, "depth").own.parameters())


def test_gradient_checkpointing_of_transformers_gives_the_same_gradients():
    given, found = inputs(), {}
    for checkpointed in (False, True):
        model = learned()
        model.noise.generator = torch.Generator().manual_seed(4)
        if checkpointed:
            options = {"use_reentrant": False, "context_fn": model.same_noise}
            model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        model.train()
        torch.manual_seed(1)
        loss_of(run(model, given)).backward()
        found[checkpointed] = {n: p.grad for n, p in model.stage_parameters("depth").items()}
    torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)


def test_a_whole_model_with_its_projection():
    model = transformers.Blip2Config(
        vision_config={
            "hidden_size": ENCODER,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        },
        qformer_config=SMALL,
        text_config={
            "model_type": "opt",
            "vocab_size": 20,
            "hidden_size": 8,
            "ffn_dim": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 8,
        },
        num_query_tokens=3,
        image_token_index=19,
    )
    torch.manual_seed(0)
    blip = transformers.Blip2ForConditionalGeneration(model).eval()
    sites = qformer_sites(blip, projection=True)
    assert len(sites) == 13 and sites[0].startswith("qformer.encoder.layer.0.")
    paths = PathWeave(blip, sites, plain=["language_projection"]).eval()
    given = {
        "pixel_values": torch.randn(2, 3, 8, 8),
        "input_ids": torch.tensor([[19, 19, 19, 4, 5]] * 2),
    }
    before = paths(**given).logits
    for name in ("video", "audio"):
        paths.add_modality(name, rank=2)
    assert torch.equal(paths(**given).logits, before)
    stage = paths.stage("language_projection", "audio")
    assert stage.Wg is None and len(stage.inner) == 0 and len(stage.adapters) == 2
    stir(paths, "audio")
    assert not torch.allclose(paths(**given).logits, before)
    assert paths.generate(**given, max_new_tokens=2).shape[0] == 2


def test_a_single_key_token_brings_a_warning():
    model = learned(("pc",))
    with pytest.warns(UserWarning, match="a cross-attention sees a single key token"):
        run(model, inputs(tokens=1))
    model.set_modality(None)
    run(model, inputs(tokens=1))


def test_files_bring_back_all_paths(tmp_path):
    model, given = learned(), inputs()
    save_paths(model, tmp_path, labels=["a", "b"])
    again = load_paths(woven(), tmp_path)
    assert again.modalities == list(ORDER) and again.modality == "depth"
    assert not any(parameter.requires_grad for parameter in again.parameters())
    for name in (*ORDER, None):
        model.set_modality(name), again.set_modality(name)
        assert torch.equal(run(again, given), run(model, given))
    more = load_paths(learned(ORDER[:1]), tmp_path).eval()
    assert torch.equal(run(more, given), run(load_paths(woven(), tmp_path), given))
    content = json.loads((tmp_path / CONFIG).read_text())
    assert content["labels"] == ["a", "b"] and content["order"] == list(ORDER)
    names = load_file(tmp_path / WEIGHTS)
    site = "encoder.layer.0.attention.attention.query"
    assert {name.split("/")[2] for name in names if name.startswith(f"audio/{site}/")} == {
        "A", "a", "B", "c", "scale", "Wg", "Wn", "F.video", "f.video"
    }  # fmt: skip


def test_a_folder_knows_its_sites(tmp_path):
    class Staged(nn.Module):
        """With names like those of paths, as in some vision models."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.stages = nn.ModuleList([two_layers(), nn.Linear(5, 5)])

        def forward(self, x):
            return self.stages[1](self.stages[0](x))

    model = PathWeave(Staged(), ["stages.0.0", "stages.1"], plain=["stages.1"])
    for name in ("image", "video"):
        model.add_modality(name, rank=2)
        stir(model, name)
    model.save_pretrained(tmp_path)
    again, x = PathWeave.from_pretrained(Staged(), tmp_path), torch.randn(3, 8)
    assert torch.equal(again.eval()(x), model.eval()(x)) and again.sites["stages.1"].plain
    other = Staged()
    other.stages[0][2].weight.data += 1  # no site, but of the base
    with pytest.raises(UserError, match="the paths belong to another model"):
        PathWeave.from_pretrained(other, tmp_path)
    model.train().stages[0][2].weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"stages\.0\.2\.weight is trainable"):
        model(x)


def edit(folder, **changes):
    path = folder / CONFIG
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(content))
    return content


def rewrite(folder, content, change):
    """The weights with a config, after a change of them."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    (folder / CONFIG).write_text(json.dumps(content))
    save_file(tensors, folder / WEIGHTS, metadata={"pathweave": json.dumps(content)})


def test_files_that_do_not_fit_are_refused(tmp_path):
    model = learned(("video", "audio"))
    save_paths(model, tmp_path)
    content = json.loads((tmp_path / CONFIG).read_text())
    site = "encoder.layer.0.attention.attention.query"

    def refused(message, target=None):
        target = target or woven()
        with pytest.raises(UserError, match=message):
            load_paths(target, tmp_path)

    edit(tmp_path, modalities=content["modalities"][::-1], order=["audio", "video"])
    refused(r"the order \['audio', 'video'\] is not that of training, \['video', 'audio'\]")
    edit(tmp_path, **content)
    edit(tmp_path, order=["audio", "video"])
    refused("is not that of training")
    edit(tmp_path, **content)
    edit(tmp_path, sites=content["sites"][:-1])
    refused(f"{CONFIG} and {WEIGHTS} differ in sites")
    edit(tmp_path, **{**content, "modalities": [{"name": "video", "dropout": 0.1}]})
    refused("dropout 0.1 of 'video' is not supported; adapters have gate, name, .* no dropout")
    edit(tmp_path, **{**content, "modalities": []})
    refused("expected at least one modality, got none")
    edit(tmp_path, **{**content, "plain": None})
    refused("not of paths: expected a list 'plain'")
    edit(tmp_path, **{**content, "peft_type": "LORA"})
    refused("not of paths: expected peft_type PATHWEAVE")
    (tmp_path / CONFIG).write_text("{")
    refused("not JSON")

    gate = f"audio/{site}/Wg"
    for change, message in (
        (lambda t: t.update({gate: t[gate][:, :1].clone()}), "Wg: expected shape .*, for 2 adapte"),
        (lambda t: t.pop(gate), f"lacks {gate}"),
        (lambda t: t.update(more=torch.ones(1)), "has more left over"),
    ):
        save_paths(model, tmp_path)
        rewrite(tmp_path, content, change)
        refused(message)

    save_paths(model, tmp_path)
    other = learned(("audio",))
    before = {name: p.clone() for name, p in other.stage_parameters("audio").items()}
    refused("its modalities, video, audio, do not begin with those of the model", other)
    assert all(torch.equal(p, before[n]) for n, p in other.stage_parameters("audio").items())
    refused("the paths belong to another model, Blip2QFormerModel with sha256", seeded(1))
    bare = qformer()
    refused("its sites and those of the model differ in", PathWeave(bare, qformer_sites(bare)[1:]))
    refused("do not begin with those of the model in order and form", learned(("video",), rank=3))
    (tmp_path / WEIGHTS).write_bytes(b"")
    refused(f"{WEIGHTS} cannot be read")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_paths(woven(), tmp_path / "no")
    with pytest.raises(ValueError, match="model: expected modalities that were learned, got none"):
        save_paths(woven(), tmp_path)


def seeded(seed):
    model = qformer(seed=seed)
    return PathWeave(model, qformer_sites(model))


@pytest.mark.parametrize("kind", ["Blip2", "InstructBlip"])
def test_the_first_modality_is_a_lora_of_peft(kind, tmp_path):
    peft = pytest.importorskip("peft")
    model, given = learned(kind=kind), inputs()
    export_lora(model, tmp_path / "lora")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(qformer(kind), str(tmp_path / "lora")).eval()
    more = {} if kind == "Blip2" else {"input_ids": None}
    model.set_modality("video")
    found = loaded(**given, **more).last_hidden_state
    # Products are summed in another order: some ulps of values around 1, layer after layer.
    torch.testing.assert_close(found, run(model, given), rtol=1e-5, atol=1e-5)
    model.set_modality(None)
    assert not torch.allclose(found, run(model, given), atol=1e-2)
    with pytest.raises(UserError, match="lora exists already"):
        export_lora(model, tmp_path / "lora")
    message = "'audio' has a gate at encoder.*, which depends on the token: it is no LoRA; the fir"
    with pytest.raises(ValueError, match=message):
        export_lora(model, tmp_path / "gated", "audio")
    assert not (tmp_path / "gated").exists()
    with pytest.raises(ValueError, match="unknown modality 'x'; learned: video, audio, depth"):
        export_lora(model, tmp_path / "x", "x")


def test_a_plain_sum_is_a_lora_too(tmp_path):
    peft = pytest.importorskip("peft")
    model, given = learned(gate="none"), inputs()
    export_lora(model, tmp_path / "lora", "depth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(qformer(), str(tmp_path / "lora")).eval()
    found = loaded(**given).last_hidden_state
    torch.testing.assert_close(found, run(model, given), rtol=1e-5, atol=1e-5)


def authors_file(model, names, path, slots=4):
    """What the authors' code saves after the last of these modalities, in its own modules."""
    own = names[-1]
    content = {f"{own}_query_tokens": torch.zeros(1), f"{own}_llm_proj.weight": torch.zeros(1)}

    def put(block, kind):
        place = f"{own}_Qformer.bert.{block}"
        place += ".output" if kind == "dense" else ".self"
        tail = "output.dense" if kind == "dense" else f"attention.{kind}"
        linear = model.sites[f"{block}.{tail}"].linear
        width, out = linear.in_features, linear.out_features
        content[f"{place}.{kind}.weight"] = linear.weight.detach()
        for number in range(slots):
            # Those of the modality itself and of later ones, which are not read, are random.
            adapter = nn.Linear(width, 2), nn.Linear(2, out), torch.ones(1)
            if number < len(names):
                stage = model.stage(f"{block}.{tail}", names[number]).own
                adapter[0].weight.data, adapter[0].bias.data = stage.A, stage.a
                adapter[1].weight.data, adapter[1].bias.data = stage.B.T, stage.c
                adapter = *adapter[:2], stage.scale.reshape(1)
            start = f"{place}.{kind}_adapter_list.{number}"
            content[f"{start}.scale"] = adapter[2].detach().clone()
            for part, layer in (("down_proj", adapter[0]), ("up_proj", adapter[1])):
                content[f"{start}.{part}.weight"] = layer.weight.detach().clone()
                content[f"{start}.{part}.bias"] = layer.bias.detach().clone()
        stage = model.stage(f"{block}.{tail}", own)
        for number in range(slots - 1):
            layer = stage.inner[number] if number < len(stage.inner) else nn.Linear(2, 2)
            for leaf in ("weight", "bias"):
                value = getattr(layer, leaf).detach().clone()
                content[f"{place}.{kind}_in_adapter_list.{number}.{leaf}"] = value
                if number < len(stage.inner):
                    repeated = f"{place}.{kind}_adapter_list.{number}.middle_proj.{leaf}"
                    content[repeated] = value
        if stage.Wg is not None:
            content[f"{place}.{own}_gate_adapter_{kind}"] = stage.Wg.detach().clone()
            content[f"{place}.{own}_noise_gate_adapter_{kind}"] = stage.Wn.detach().clone()

    for site in model.sites:
        block, _, tail = site.partition("attention.")
        if tail == "output.dense":
            for kind in ("query", "key", "value", "dense"):
                put(block + "attention", kind)
    torch.save({"model": content, "iters": 1}, path)
    return path


@pytest.fixture
def authors(tmp_path):
    model = learned()
    files = {
        name: authors_file(model, ORDER[: number + 1], tmp_path / f"{name}.pth")
        for number, name in enumerate(ORDER)
    }
    return model, files


def test_checkpoints_of_the_authors_are_read(authors):
    model, files = authors
    given, again = inputs(), load_authors(woven(), files)
    for name in ORDER:
        model.set_modality(name), again.set_modality(name)
        assert torch.equal(run(again, given), run(model, given)), name
    assert not any(parameter.requires_grad for parameter in again.parameters())


def change(path, **tensors):
    content = torch.load(path, weights_only=True)
    content["model"].update(tensors)
    torch.save(content, path)


def test_checkpoints_that_do_not_fit_are_refused(authors, tmp_path):
    _, files = authors
    place = "audio_Qformer.bert.encoder.layer.0.attention.self."

    def refused(message, files):
        with pytest.raises(UserError, match=message):
            load_authors(woven(), files)

    swapped = {"audio": files["audio"], "video": files["video"]}
    refused("is a gate for 2 adapters, 'audio' has 1 in the order audio", swapped)
    refused(
        r"has no tensors audio_Qformer\.\*; is it the file of 'audio'\?", {"audio": files["video"]}
    )
    refused("cannot be read as tensors alone", {"video": tmp_path / "no.pth"})
    with pytest.raises(ValueError, match="files: expected one for each modality"):
        load_authors(woven(), {})
    mlp = {f"{place}query_in_adapter_list.0.fc1.weight": torch.ones(4, 2)}
    change(files["audio"], **mlp)
    refused("query_in_adapter_list.0.fc1.weight: not known here", files)
    torch.save({"model": {"video_Qformer.x": nn.Linear(1, 1)}}, tmp_path / "pickled.pth")
    refused("cannot be read as tensors alone", {"video": tmp_path / "pickled.pth"})
    torch.save([1], tmp_path / "list.pth")
    refused("expected a checkpoint with tensors under 'model'", {"video": tmp_path / "list.pth"})


def test_an_earlier_adapter_that_moved_is_named(authors):
    _, files = authors
    key = "audio_Qformer.bert.encoder.layer.0.attention.self.query_adapter_list.0.up_proj.bias"
    change(files["audio"], **{key: torch.ones(HIDDEN)})
    with pytest.raises(UserError, match="up_proj.bias is not that of the file of 'video'"):
        load_authors(woven(), files)


def test_the_q_former_of_a_checkpoint_must_be_the_models(authors):
    _, files = authors
    with pytest.raises(UserError, match=r"query\.weight is not the model's: it belongs to another"):
        load_authors(seeded(1), files)


def test_point_clouds_of_the_authors_bring_a_warning(tmp_path):
    model = learned((*ORDER, "pc"))
    names = (*ORDER, "pc")
    files = {
        name: authors_file(model, names[: number + 1], tmp_path / f"{name}.pth")
        for number, name in enumerate(names)
    }
    with pytest.warns(
        UserWarning, match="pc: in the authors' code its adapters of cross-attention"
    ):
        load_authors(woven(), files)


def test_a_part_of_a_qformer_can_be_checkpointed_with_torchs_own_noise():
    model, given, found = learned(), inputs(), {}
    for checkpointed in (False, True):
        torch.manual_seed(3)
        model.zero_grad()
        model.train()
        hidden = given["query_embeds"].clone().requires_grad_(True)

        def forward(hidden):
            return run(model, {**given, "query_embeds": hidden})

        out = checkpoint(forward, hidden, use_reentrant=False) if checkpointed else forward(hidden)
        loss_of(out).backward()
        found[checkpointed] = hidden.grad
    assert torch.equal(found[True], found[False])
