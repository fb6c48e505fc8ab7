"""What the reference checkpoints are trained with is what is exported and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.family import Reference
from models.scenes import train
from models.scenes.batches import Batch, Batches, join_feeds
from models.scenes.learners import LEARNERS
from models.scenes.parts import draw_part, keep_cells, repeats
from models.scenes.tasks import KINDS, Kind, sample_task
from models.scenes.train import SMALLER, Stage, Steps, Trainer, build_optimizers, combine, drop_visual_tokens, take_step

QWEN2_VL = Path("models/qwen2-vl-tiny")


@pytest.fixture(scope="module", params=[name for name in LEARNERS if name != "qwen2-vl-foveal-tiny"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Reference]:
    """A trainer before its first step, and the checkpoint that it saved; both have its weights in half precision.

    `qwen2-vl-foveal-tiny` begins as `qwen2-vl-dense-tiny` does.
    """
    work = tmp_path_factory.mktemp(request.param)
    trainer = Trainer(request.param, 0, work, QWEN2_VL)
    state = trainer.learner.state_dict()
    trainer.learner.load_state_dict({name: value.half().float() for name, value in state.items()})
    return trainer, read_family(Checkpoint.open(work / "untrained")).reference()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_what_the_saved_checkpoint_sees(trained: tuple[Trainer, Reference], kind: Kind) -> None:
    trainer, reference = trained
    learner, batches = trainer.learner, Batches(trainer.learner)
    task = sample_task(learner.world, "validation", 0, 3, kind, 3)
    visuals = batches.visuals(task)
    feeds = join_feeds([visuals])
    with torch.no_grad():
        features = learner.see(feeds)
        embeds = torch.cat([reference.visual_embeds(visual.feeds) for visual in visuals])
        torch.testing.assert_close(learner.pack(features, feeds)[0], embeds, atol=1e-4, rtol=1e-4)
        batch = Batch(kind, feeds, {}, *batches.sequences([task], visuals))
        logits = trainer.answer_logits(batch, learner.pack(features, feeds))
        expected = []
        for question in task.questions:
            parts = [*({"type": visual.kind} for visual in visuals), {"type": "text", "text": question.text}]
            ids = batches.encoder.encode([{"role": "user", "content": parts}]).input_ids
            layout = learner.processor.layout(ids, visuals)
            answer = np.array(batches.encode(question.answer))
            whole = reference.text_embeds(torch.from_numpy(np.concatenate([layout.input_ids, answer])))
            whole[layout.visual_indices] = embeds
            following = np.tile(layout.next_position + np.arange(len(answer)), (len(layout.position_ids), 1))
            positions = torch.from_numpy(np.concatenate([layout.position_ids, following], axis=1))
            expected.append(reference.forward(whole, positions).logits[len(layout.input_ids) - 1 :])
    torch.testing.assert_close(logits, torch.cat(expected), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_feature_of_a_batch_has_its_label(trained: tuple[Trainer, Reference], kind: Kind) -> None:
    learner = trained[0].learner
    batch = Batches(learner).make(np.random.default_rng(0), kind, 2, pixels=True)
    with torch.no_grad():
        features = learner.see(batch.feeds)
    assert batch.cells["shape"].shape == features.shape[:2]
    on_object = batch.cells["shape"] >= 0
    assert 0.03 < on_object.float().mean().item() < 0.6
    assert torch.equal(on_object, batch.cells["colour"] >= 0)
    assert (batch.cells["centre"] == 1).sum() > 0


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_dropped_visual_tokens_leave_the_rest_as_it_was(trained: tuple[Trainer, Reference], share: float) -> None:
    learner = trained[0].learner
    batch = Batches(learner).make(np.random.default_rng(1), "image", 2, pixels=False)
    count, total = len(batch.visual), int(batch.visual[0].sum())
    embeds = torch.arange(total, dtype=torch.float32).expand(count, total)[..., None]
    matter = (torch.arange(total) < 4).float().expand(count, total)
    fewer, left = drop_visual_tokens(batch, embeds, matter, share)
    assert fewer.visual.sum(dim=1).tolist() == [round(share * total)] * count
    assert (left[..., 0].diff(dim=1) > 0).all()
    for row in range(count):
        old = batch.positions[:, row, batch.visual[row]]
        assert torch.equal(fewer.positions[:, row, fewer.visual[row]], old[:, left[row, :, 0].long()])
        for name in ("input_ids", "labels", "segments"):
            values = (getattr(one, name)[row, ~one.visual[row]] for one in (fewer, batch))
            assert torch.equal(*values)
    if share == 1:
        assert all(torch.equal(getattr(fewer, name), getattr(batch, name)) for name in ("input_ids", "positions", "labels"))


@pytest.fixture(scope="module", params=["qwen2-vl-dense-tiny", "qwen2-vl-foveal-tiny"])
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(request.param, 0, tmp_path_factory.mktemp(request.param), QWEN2_VL)


@pytest.mark.parametrize("stage", list(SMALLER))
def test_a_stage_with_documents_takes_steps(dense: Trainer, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SMALLER, stage, 200)
    plan = Stage(stage, 4)
    steps, optimizers = Steps(Batches(dense.learner), plan, 0, 0), build_optimizers(dense, plan)
    watched = dense.learner.model.model.visual.patch_embed.proj.weight
    before = watched.detach().clone()
    for number in range(2):
        facts = take_step(dense, plan, optimizers, steps[number], number)
        assert np.isfinite(list(facts.values())).all()
    assert not torch.equal(before, watched)


def test_two_halves_are_put_together(dense: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text model of one, the tower of the other, and features that say what the text model knows."""
    monkeypatch.setattr(train, "FIT_BATCHES", 3)
    monkeypatch.setitem(SMALLER, "read", 200)
    whole = {"learner": dense.learner.state_dict(), "symbolic": dense.symbolic.state_dict()}
    whole = {room: {name: value.clone() for name, value in state.items()} for room, state in whole.items()}
    for stage, share in (("lookup", 1.25), ("read", 0.75)):
        scaled = {room: {name: share * value for name, value in state.items()} for room, state in whole.items()}
        torch.save(scaled, tmp_path / f"{stage}.pt")
    combine(dense, "lookup", "read", tmp_path, 0)
    state = dense.learner.state_dict()
    shares = {"model.model.language_model.norm.weight": 1.25, "model.model.visual.patch_embed.proj.weight": 0.75}
    for name, share in shares.items():
        torch.testing.assert_close(state[name], share * whole["learner"][name])
    batch = Steps(Batches(dense.learner), Stage("read", 9), 1, 0)[0]
    with torch.no_grad():
        shown = dense.symbolic(dense.embeddings, batch.cells)
        error = (dense.learner.see(batch.feeds) - shown).square().mean() / shown.var()
    assert error < 0.5
    dense.load(whole)


@pytest.mark.parametrize("kind", ["image", "images", "video", "page"])
def test_a_part_is_what_the_vision_graph_makes_of_its_cells(dense: Trainer, kind: Kind) -> None:
    """Pixels, positions, labels and visual tokens of a cell stay together."""
    batch = Batches(dense.learner).make(np.random.default_rng(3), kind, 2, pixels=True, visual_tokens=100)
    pixels = batch.feeds["pixel_values"]
    count, crops, total = *pixels.shape[:2], pixels.shape[2] // 4
    kept = torch.rand(count, crops, total).topk(total // 3).indices.sort().values
    part = keep_cells(batch, kept)
    assert part.feeds["pixel_values"].shape[2] == 4 * (total // 3)
    positions = part.feeds["patch_positions"].view(count, crops, -1, 2)
    for row in range(count):
        flat = []
        for crop in range(crops):
            places = (4 * kept[row, crop][:, None] + torch.arange(4)).flatten()
            assert torch.equal(part.feeds["pixel_values"][row, crop], pixels[row, crop, places])
            assert torch.equal(positions[row, crop], batch.feeds["patch_positions"][places])
            flat.append(kept[row, crop] + crop * total)
        cells = torch.cat(flat)
        assert all(torch.equal(part.cells[name][row], value[row, cells]) for name, value in batch.cells.items())
        assert torch.equal(part.positions[:, row, part.visual[row]], batch.positions[:, row, batch.visual[row]][:, cells])
    with torch.no_grad():
        seen = dense.learner.see(part.feeds)
        alone = dense.learner.see({"pixel_values": part.feeds["pixel_values"][:1, :1], "patch_positions": positions[0, 0]})
    torch.testing.assert_close(seen[:1, : total // 3], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["image", "page", "video"])
def test_parts_leave_questions_answerable(dense: Trainer, kind: Kind) -> None:
    batch = Batches(dense.learner).make(np.random.default_rng(4), kind, 6, pixels=True, visual_tokens=300)
    torch.manual_seed(0)
    parts = [draw_part(batch) for _ in range(30)]
    assert 5 < sum(part is batch for part in parts) < 20
    shares = {part.visual.float().sum().item() / batch.visual.float().sum().item() for part in parts}
    assert min(shares) < 0.75
    if kind == "video":
        return
    focused = [part for part in parts if part is not batch and (part.types != batch.types).any()]
    assert focused
    for part in focused:
        asked = int((part.types >= 0).sum(dim=1).max())
        assert asked <= 3
        for row in range(len(part.types)):
            for number in range(asked):
                lost = batch.needs[row, number] & ~torch.isin(torch.arange(batch.needs.shape[2]), _kept(batch, part, row))
                assert not lost.any()


def _kept(batch: Batch, part: Batch, row: int) -> torch.Tensor:
    """Which visual tokens of a batch its part has, by their positions."""
    whole, left = (one.positions[:, row, one.visual[row]].T for one in (batch, part))
    return torch.tensor([int((whole == place).all(dim=1).nonzero()[0, 0]) for place in left])


def test_cells_that_repeat_a_neighbour_are_found(dense: Trainer) -> None:
    batch = Batches(dense.learner).make(np.random.default_rng(5), "page", 1, pixels=True, visual_tokens=100)
    pixels, positions = batch.feeds["pixel_values"], batch.feeds["patch_positions"]
    places = (positions[::4] // 2).tolist()
    cells = {tuple(place): pixels[0, 0, 4 * number : 4 * number + 4] for number, place in enumerate(places)}
    expected = [
        any(near in cells and torch.equal(cells[near], cells[row, column]) for near in ((row, column - 1), (row - 1, column)))
        for row, column in places
    ]
    assert repeats(pixels, positions)[0, 0].tolist() == expected
    assert 0 < sum(expected) < len(expected)
