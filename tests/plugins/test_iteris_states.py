"""A sweep that goes on from block to block: the bytes of one that runs whole models, in less."""

import copy
from collections import Counter

import pytest
import torch
from pyext_plugins.iteris.adapters import LowRank
from pyext_plugins.iteris.branch import Brancher
from pyext_plugins.iteris.merging import Merging
from pyext_plugins.iteris.settings import Settings
from pyext_plugins.iteris.tasks import Batch, Task
from torch import nn

from tests.plugins import merging

WIDTH, RANK, DEPTH = 8, 2, 4


class Block(nn.Module):
    """Two linear maps in a row."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Chain(nn.Module):
    """Blocks in a row, between linear maps."""

    def __init__(self, block=Block, depth=DEPTH):
        super().__init__()
        self.stem, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(depth))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x[0] if isinstance(x, Box) else x)


class Skipping(Chain):
    """Each block reads what the two before it gave."""

    def forward(self, x):
        before = x = self.stem(x)
        for block in self.blocks:
            before, x = x, block(x + before)
        return self.head(x)


class Narrowing(Chain):
    """The blocks' outputs have other shapes, and all of them go into the head."""

    def forward(self, x):
        x, given = self.stem(x), []
        for place, block in enumerate(self.blocks):
            x = block(x)[:, : 7 - place]
            given.append(x)
        return self.head(torch.stack([own[:, 0] for own in given]))


class InPlace(Block):
    """Gives the tensor that it was given, with other numbers."""

    def forward(self, x):
        x += self.down(torch.tanh(self.up(self.norm(x))))
        return x


class Wrapping(Block):
    """Gives what is no tensor."""

    def forward(self, x):
        x = x[0] if isinstance(x, Box) else x
        return Box(super().forward(x))


class Box:
    """Of one thing."""

    def __init__(self, content):
        self.content = content

    def __getitem__(self, place):
        return self.content


class Passing(Block):
    """Gives its output, and what the first block made for all of them."""

    def forward(self, x, shared=None):
        if shared is None:
            shared = x.mean(-1, keepdim=True).transpose(0, 1).contiguous().transpose(0, 1)
        return super().forward(x) + shared, shared, None


class PassedOn(Chain):
    def __init__(self):
        super().__init__(Passing)

    def forward(self, x):
        x, shared = self.stem(x), None
        for block in self.blocks:
            x, shared, _ = block(x, shared)
        return self.head(x)


class Routed(Block):
    """The second map is for some batches only."""

    def forward(self, x):
        h = torch.tanh(self.up(self.norm(x)))
        return x + (self.down(h) if x.mean() > -0.5 else h[..., :WIDTH])


def net_tasks(net, samples=6):
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    return [make_task(net, seed, names, net_batches(seed, samples)) for seed in (1, 2)]


def net_batches(seed, samples):
    generator = torch.Generator().manual_seed(10 + seed)
    x = torch.randn(samples, 7, WIDTH, generator=generator)
    return [Batch({"x": x}), Batch({"x": x[:, :5] * 0.5 - 2.0})]


def make_task(model, seed, names, batches):
    generator = torch.Generator().manual_seed(seed)
    modules, updates = dict(model.named_modules()), {}
    for name in names:
        o, d = modules[name].weight.shape
        if type(modules[name]).__name__ == "Conv1D":
            o, d = d, o
        a, b = (torch.randn(*shape, generator=generator) for shape in ((RANK, d), (o, RANK)))
        updates[name] = LowRank(a, 0.2 * b, 0.5)
    return Task(f"task{seed}", updates, batches)


def advanced(model, tasks, folder=None):
    """A sweep to its end."""
    own = Merging(model, tasks, Settings(), folder=folder)
    while not own.done:
        own.advance()
    return own.result()


def whole(model, tasks):
    """The same, each group on whole runs of both models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Brancher, "can_go_on", lambda *args: False)
        return advanced(model, tasks)


def assert_same(found, wanted):
    assert found.report.rows == wanted.report.rows
    assert found.modules.keys() == wanted.modules.keys()
    for name, update in wanted.modules.items():
        assert torch.equal(found.modules[name].a, update.a), name
        assert torch.equal(found.modules[name].b, update.b), name


def deep(kind):
    """A tiny base of transformers with more layers than the tests of files have."""
    torch.manual_seed(0)
    config = merging.base(kind).config
    for entry in ("num_hidden_layers", "num_decoder_layers"):
        setattr(config, entry, DEPTH)
    return type(merging.base(kind))(config).eval()


def deep_tasks(model, kind):
    names = [
        name
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in merging.TARGETS[kind] and hasattr(module, "weight")
    ]
    generator = torch.Generator().manual_seed(3)

    def batch(rows, length):
        ids = torch.randint(2, merging.VOCABULARY, (rows, length), generator=generator)
        mask = torch.ones(rows, length, dtype=torch.bool)
        mask[0, length - 2 :] = False
        inputs, masks = {"input_ids": ids, "attention_mask": mask.long()}, (mask,)
        if kind == "t5":
            inputs |= {
                "decoder_input_ids": ids[:, 1:],
                "decoder_attention_mask": mask[:, 1:].long(),
            }
            masks += (mask[:, 1:],)
        return Batch(inputs, masks)

    return [make_task(model, seed, names, [batch(3, 9), batch(2, 6)]) for seed in (1, 2)]


class Calls:
    """How often each block of the lists is run, by the calls of one of its modules."""

    def __init__(self, model, ending):
        self.of = Counter()
        for name, module in model.named_modules():
            if name.endswith(ending):
                module.register_forward_pre_hook(lambda module, args, name=name: self._add(name))

    def _add(self, name):
        self.of[name] += 1


LAST = {"bert": "output.dense", "gpt2": "mlp.c_fc", "t5": "DenseReluDense.wi"}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_transformers_give_the_same_in_fewer_runs(kind):
    model = deep(kind)
    tasks = deep_tasks(model, kind)
    calls = Calls(model, LAST[kind])
    wanted = whole(model, tasks)
    before = Counter(calls.of)
    calls.of.clear()
    assert_same(advanced(model, tasks), wanted)
    # Of two tasks, two batches and two models: eight times each block is finished, up to twice as
    # the first groups of the next are solved, and its own groups may come behind the module.
    assert max(calls.of.values()) <= 8 * 3 + 4
    assert sum(calls.of.values()) < sum(before.values())


@pytest.mark.parametrize(
    "make",
    [
        Chain,
        lambda: Chain(InPlace),
        lambda: Chain(Wrapping),
        PassedOn,
        lambda: Chain(Routed),
        Skipping,
        Narrowing,
    ],
    ids=["chain", "in place", "wrapping", "passed on", "routed", "skipping", "narrowing"],
)
def test_whatever_blocks_do_the_outcome_is_that_of_whole_runs(make):
    torch.manual_seed(0)
    net = make().eval()
    tasks = net_tasks(net)
    before = copy.deepcopy(net.state_dict())
    assert_same(advanced(net, tasks), whole(net, tasks))
    assert all(torch.equal(own, before[name]) for name, own in net.state_dict().items())
    assert all("forward" not in vars(module) for module in net.modules())


def runs(make, depth):
    """How often, at most, a sweep runs the first map of a block of a net that is so deep."""
    torch.manual_seed(0)
    net = make(depth).eval()
    tasks = net_tasks(net)
    calls = Calls(net, ".up")
    advanced(net, tasks)
    return max(calls.of.values())


@pytest.mark.parametrize(
    "make, linear",
    [
        (lambda depth: Chain(Block, depth), True),
        (lambda depth: Chain(InPlace, depth), True),
        (lambda depth: Chain(Routed, depth), True),
        (lambda depth: Skipping(Block, depth), False),
        (lambda depth: Chain(Wrapping, depth), False),
    ],
    ids=["chain", "in place", "routed", "skipping", "wrapping"],
)
def test_runs_of_a_block_do_not_depend_on_the_depth(make, linear):
    # Where a block is no link of a chain, the first one is run for each group behind it.
    assert (runs(make, 4) == runs(make, 8)) == linear


def test_a_sweep_taken_up_again_goes_on_to_the_same(tmp_path):
    torch.manual_seed(0)
    net = Chain().eval()
    tasks = net_tasks(net)
    wanted = whole(net, tasks)
    stale = tmp_path / "states-0" / "stale"
    stale.parent.mkdir()
    stale.write_text("of a killed run")
    first = Merging(net, tasks, Settings(), folder=tmp_path)
    for _ in range(5):
        first.advance()
    assert not stale.exists()
    again = Merging(net, tasks, Settings(), folder=tmp_path)
    again.step = first.step
    again.restore(first.state())
    while not again.done:
        again.advance()
    assert_same(again.result(), wanted)


def test_states_are_as_many_at_every_block_and_gone_at_the_end(tmp_path):
    torch.manual_seed(0)
    net = PassedOn().eval()
    own, sizes = Merging(net, net_tasks(net), Settings(), folder=tmp_path), []
    while not own.done:
        own.advance()
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        sizes.append(sum(file.stat().st_size for file in files))
    # The first block is finished when its three groups are done, and the first of the next.
    assert sizes[4] > 0 and set(sizes[4:-1]) == {sizes[4]}
    assert list(tmp_path.iterdir()) == []


def test_what_was_passed_on_is_written_once(tmp_path):
    torch.manual_seed(0)
    net = PassedOn().eval()
    own = Merging(net, net_tasks(net), Settings(), folder=tmp_path)
    written = []
    while not own.done:
        own.advance()
        written.append(
            {file.name: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
        )
    shared = [name for name in written[5] if name.endswith("-1.safetensors")]
    hidden = [name for name in written[5] if name.endswith("-0.safetensors")]
    assert shared and hidden
    assert all(written[5][name] == written[-2][name] for name in shared)
    assert all(written[5][name] < written[-2][name] for name in hidden)
