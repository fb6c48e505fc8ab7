"""What the reference checkpoints are trained with is what is exported and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.family import Reference
from models.scenes.batches import Batch, Batches, join_feeds
from models.scenes.learners import LEARNERS
from models.scenes.tasks import KINDS, Kind, sample_task
from models.scenes.train import Trainer, drop_visual_tokens

QWEN2_VL = Path("models/qwen2-vl-tiny")


@pytest.fixture(scope="module", params=list(LEARNERS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Reference]:
    """A trainer before its first step, and the checkpoint that it saved; both have its weights in half precision."""
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
