"""Method. A small encoder learns to see what its teacher sees, first by embeddings, then by the masks that both draw for the same prompts.

AdamW with a polynomial decay over the budget and an exponential moving average of the weights, which is what is kept. The first part of
the training takes the squared difference of embeddings (MobileSAM, Zhang et al. 2023). The second adds masks: boxes and points at what the
teacher itself finds in a picture, answered by both through the teacher's decoder; then a point where the two differ, and both are asked
again (EdgeSAM, Zhou et al. 2023). No label, no gold and no prompt of the archive is read. A batch depends on (seed, step) alone, so a
resumed run continues as if nothing had happened.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from distill.teachers.decode import decode_prompts
from students.course import Course, Progressing
from students.promptable.losses import embedding_loss, inside, mask_loss
from students.promptable.prompts import Questions, draw_questions, point_between
from students.promptable.views import Batch, Views
from students.spec import PromptableSpec, StudentSpec, TrainProgress

_GRADIENT_NORM = 1.0
_WARM_UP = 20
"""Steps in which the rate rises."""
_SECONDS_PER_LOOK = 60.0
"""Of a training on time, at least so many between two looks at held-out pictures; one look costs some seconds."""
_ASKED_RATE = 0.6
"""Of the learning rate, once masks are learnt: their gradients are larger and rougher."""


@dataclass(slots=True, kw_only=True)
class DistillingState(Progressing):
    """What changes during training and must survive a kill."""

    embedding_steps: int = 0
    error: float | None = None
    """Of embeddings on held-out pictures, at the last look."""


class Distilling:
    """One training run; `run` it, then take `student`.

    Args:
        spec: what is asked for.
        network: the student, untrained.
        views: what is learnt from.
        held_out: pictures of patients that nothing is learnt from, by number; None where there are none.
        folder: where the state is kept meanwhile.
        fingerprint: of everything that decides the result.
    """

    def __init__(
        self, spec: StudentSpec, network: Sam, *, views: Views, held_out: "HeldOut | None", folder: Path, fingerprint: str
    ) -> None:
        self.spec, self.how = spec, spec.promptable or PromptableSpec()
        self._views, self._held_out = views, held_out
        self._teacher = views.teacher
        self.network = network.to(self._teacher.device).train()
        self.network.requires_grad_(requires_grad=False)
        self.network.image_encoder.requires_grad_(requires_grad=True)
        if self.how.decoder == "tuned":
            self.network.mask_decoder.requires_grad_(requires_grad=True)
        self.student: Sam = copy.deepcopy(self.network).requires_grad_(requires_grad=False).eval()
        learning = [each for each in self.network.parameters() if each.requires_grad]
        self._optimiser = torch.optim.AdamW(learning, lr=spec.lr, weight_decay=spec.weight_decay)
        self.state = DistillingState()
        self._course = Course(
            spec,
            self.state,
            network=self.network,
            average=self.student,
            optimiser=self._optimiser,
            clip_norm=_GRADIENT_NORM,
            remedy=f"Lower lr (now {spec.lr}).",
            folder=folder,
            fingerprint=fingerprint,
        )

    def run(self, progress: Callable[[TrainProgress], None] | None = None) -> None:
        """Train until the budget or the steps run out, continuing from a checkpoint of the same inputs if there is one."""
        self._course.restore()
        self._course.run(self._learn, self._judge, progress)

    @property
    def resumed(self) -> bool:
        """Whether this is an interrupted training that was continued."""
        return self._course.resumed

    @property
    def slices(self) -> int:
        """How many different slices are learnt from."""
        return self._views.pictures.slices

    def _learn(self) -> float:
        """Take one optimiser step and return its loss."""
        asked = self._course.fraction >= self.how.embedding_share
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate(asked=asked)
        batch = self._views.batch(self.state.step, asked=asked)
        embeddings = self.network.image_encoder(batch.squares)
        where = inside(batch.sizes_px, _grid(embeddings), self._teacher.profile.image_size, embeddings.device)
        loss = embedding_loss(embeddings, batch.features, where)
        if asked:
            loss = loss + self._masks(batch, embeddings)
        else:
            self.state.embedding_steps += 1
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        value = float(loss.detach())
        self._course.apply(value)
        return value

    def _rate(self, *, asked: bool) -> float:
        rate: float = self.spec.lr * min(1.0, (self.state.step + 1) / _WARM_UP) * (1 - self._course.fraction) ** 0.9
        return max(rate * (_ASKED_RATE if asked else 1.0), self.spec.lr * 1e-3)

    def _masks(self, batch: Batch, embeddings: Tensor) -> Tensor:
        """Ask both about the same places, then again with a point where they differ; return how far their masks are apart."""
        rng = np.random.default_rng((self.spec.seed, self.state.step, 4))
        questions = draw_questions(batch.objects, self.how.prompts, self._teacher.profile, rng, embeddings.device)
        rough = self._rough(batch, questions) if questions.kind == "box and mask" else None
        taught, taught_iou = self._answer(self._teacher.sam, batch.features, questions, rough, learn=False)
        drawn, iou = self._answer(self.network, embeddings, questions, rough, learn=True)
        loss = mask_loss(drawn, taught, iou, taught_iou)
        if "point" not in self._teacher.profile.prompts or questions.boxes is None:
            return loss
        side = self._teacher.profile.image_size / drawn.shape[-1]
        points, labels = point_between(drawn[:, 0] > 0, taught[:, 0] > 0, side, rng)
        again = Questions(kind=questions.kind, index=questions.index, boxes=questions.boxes, points=points, labels=labels)
        before = drawn[:, :1].detach() if "mask" in self._teacher.profile.prompts else None
        taught, taught_iou = self._answer(self._teacher.sam, batch.features, again, before, learn=False)
        drawn, iou = self._answer(self.network, embeddings, again, before, learn=True)
        return (loss + mask_loss(drawn, taught, iou, taught_iou)) / 2

    def _rough(self, batch: Batch, questions: Questions) -> Tensor:
        """Return the teacher's own masks for the boxes, as the mask of a neighbouring slice would be given."""
        return self._answer(self._teacher.sam, batch.features, questions, None, learn=False)[0][:, :1]

    def _answer(self, sam: Sam, embeddings: Tensor, questions: Questions, masks: Tensor | None, *, learn: bool) -> tuple[Tensor, Tensor]:
        """Return logits ``(P, M, m, m)``, cut at zero, and predicted IoU."""
        with torch.set_grad_enabled(learn):
            logits, iou = decode_prompts(
                sam,
                embeddings,
                questions.index,
                boxes=questions.boxes,
                points=questions.points,
                point_labels=questions.labels,
                mask_inputs=masks,
            )
        return logits + self._teacher.profile.logit_shift, iou

    def _judge(self) -> None:
        """Say why training ends, once it does, and look at held-out pictures when that is due."""
        self._decide()
        self._look_when_due()
        self._course.tick()

    def _decide(self) -> None:
        """Say why training ends, once it does."""
        if self.spec.steps is not None and self.state.step >= self.spec.steps:
            self.state.stopped = "steps"
        elif self._course.fraction >= 1:
            self.state.stopped = "budget"

    def _look_when_due(self) -> None:
        """Compare the averaged student with its teacher on held-out pictures, a few times and at the end."""
        budget = self.spec.budget_seconds
        times = self.spec.validations if budget is None else min(self.spec.validations, max(1, int(budget / _SECONDS_PER_LOOK)))
        if self.state.stopped is None and int(self._course.fraction * times) <= int(self.state.looked_at * times):
            return
        self.state.looked_at = self._course.fraction
        agreement, self.state.error = (None, None) if self._held_out is None else self._held_out.look(self.student)
        self._course.note(agreement)


class HeldOut:
    """Pictures of patients that nothing is learnt from, as they are, with a few boxes on each; what student and teacher say of them is compared.

    Args:
        views: of these patients alone.
        count: how many pictures.
        seed: draws the boxes.
    """

    def __init__(self, views: Views, count: int, seed: int) -> None:
        self._views, self._count, self._seed = views, count, seed

    def look(self, student: Sam) -> tuple[float | None, float]:
        """Return the mean Dice of the student's masks with its teacher's, empty ones of the teacher left out, and the error of embeddings."""
        teacher = self._views.teacher
        agreements, errors = [], []
        for number in range(self._count):
            batch = self._views.plain(number)
            rng = np.random.default_rng((self._seed, number, 5))
            with torch.inference_mode():
                embeddings = student.image_encoder(batch.squares)
                where = inside(batch.sizes_px, _grid(embeddings), teacher.profile.image_size, embeddings.device)
                errors.append(float(embedding_loss(embeddings, batch.features, where)))
                questions = draw_questions(batch.objects, 4, teacher.profile, rng, embeddings.device)
                drawn, taught = (self._masks(sam, seen, questions) for sam, seen in ((student, embeddings), (teacher.sam, batch.features)))
            known = taught.sum((-2, -1)) > 0
            dice = 2 * (drawn & taught).sum((-2, -1)) / (drawn.sum((-2, -1)) + taught.sum((-2, -1))).clamp(min=1)
            agreements += dice[known].tolist()
        return (float(np.mean(agreements)) if agreements else None), float(np.mean(errors))

    def _masks(self, sam: Sam, seen: Tensor, questions: Questions) -> Tensor:
        """Return the single answers ``(P, m, m)`` bool."""
        logits, _ = decode_prompts(
            sam, seen, questions.index, boxes=questions.boxes, points=questions.points, point_labels=questions.labels
        )
        return logits[:, 0] + self._views.teacher.profile.logit_shift > 0


def _grid(embeddings: Tensor) -> tuple[int, int]:
    return int(embeddings.shape[2]), int(embeddings.shape[3])
