"""What being a teacher means: inherit, and give a teacher. Read with ``runpy``, as tests are no package."""

import numpy as np
import pytest

from distill.teachers.base import PromptBatch, Teacher

SIZES = ((40, 61), (72, 33))
"""Pictures of unequal sides, so that a transposition shows."""


class TeacherContract:
    """Holds for every teacher that takes boxes, ours and others'."""

    tolerance = 1e-3
    """Of logits, between one way of asking and another."""

    @pytest.fixture
    def teacher(self) -> Teacher:
        raise NotImplementedError

    @pytest.fixture
    def images(self) -> list[np.ndarray]:
        rng = np.random.default_rng(3)
        return [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in SIZES]

    @pytest.fixture
    def prompts(self) -> PromptBatch:
        boxes = np.array([[4, 6, 30, 35], [2, 3, 20, 60], [10, 8, 55, 20]], np.float32)
        return PromptBatch(image_index=np.array([0, 1, 0]), boxes_xyxy_px=boxes)

    def test_it_is_a_teacher_that_takes_boxes(self, teacher: Teacher) -> None:
        assert isinstance(teacher, Teacher)
        assert "box" in teacher.profile.prompts
        assert teacher.fingerprint

    def test_every_prompt_has_candidates_in_the_low_resolution_frame(
        self, teacher: Teacher, images: list[np.ndarray], prompts: PromptBatch
    ) -> None:
        decoded = teacher.decode(teacher.encode(images), prompts)
        count, candidates, *sides = decoded.low_res_logits.shape
        assert (count, *sides) == (3, teacher.mask_size_px, teacher.mask_size_px)
        assert tuple(decoded.iou.shape) == (3, candidates)

    def test_an_embedding_knows_the_sizes_of_its_pictures(self, teacher: Teacher, images: list[np.ndarray]) -> None:
        embeddings = teacher.encode(images)
        assert tuple(map(tuple, embeddings.sizes_px)) == SIZES
        assert len(embeddings.input_sizes_px) == len(images)

    def test_masks_come_back_in_the_size_of_the_picture(self, teacher: Teacher, images: list[np.ndarray], prompts: PromptBatch) -> None:
        embeddings = teacher.encode(images)
        decoded = teacher.decode(embeddings, prompts)
        restored = teacher.upsample(decoded.low_res_logits[1:2], SIZES[1], embeddings.input_sizes_px[1])
        assert tuple(restored.shape) == (1, decoded.low_res_logits.shape[1], *SIZES[1])

    def test_answers_are_finite_and_the_same_each_time(self, teacher: Teacher, images: list[np.ndarray], prompts: PromptBatch) -> None:
        first, second = (teacher.decode(teacher.encode(images), prompts).low_res_logits.float().cpu().numpy() for _ in range(2))
        assert np.isfinite(first).all()
        np.testing.assert_array_equal(first, second)

    def test_an_answer_does_not_depend_on_what_else_is_asked(
        self, teacher: Teacher, images: list[np.ndarray], prompts: PromptBatch
    ) -> None:
        together = teacher.decode(teacher.encode(images), prompts).low_res_logits[1].float().cpu().numpy()
        assert prompts.boxes_xyxy_px is not None
        lonely = PromptBatch(image_index=np.array([0]), boxes_xyxy_px=prompts.boxes_xyxy_px[1:2])
        alone = teacher.decode(teacher.encode(images[1:]), lonely).low_res_logits[0].float().cpu().numpy()
        np.testing.assert_allclose(together, alone, atol=self.tolerance)

    def test_one_picture_is_answered_as_in_a_batch(self, teacher: Teacher, images: list[np.ndarray], prompts: PromptBatch) -> None:
        assert prompts.boxes_xyxy_px is not None
        prediction = teacher.predict(images[1], boxes=prompts.boxes_xyxy_px[1:2])
        embeddings = teacher.encode(images)
        decoded = teacher.decode(embeddings, prompts)
        expected = teacher.upsample(decoded.low_res_logits[1:2], SIZES[1], embeddings.input_sizes_px[1])
        np.testing.assert_allclose(prediction.logits, expected.float().cpu().numpy(), atol=self.tolerance)
        assert prediction.iou.shape == prediction.logits.shape[:2]

    def test_a_rough_mask_becomes_logits_of_the_low_resolution_frame(self, teacher: Teacher, images: list[np.ndarray]) -> None:
        embeddings = teacher.encode(images)
        mask = np.zeros(SIZES[0], np.float32)
        mask[5:20, 9:40] = 1
        assert teacher.mask_prompt(mask, embeddings.input_sizes_px[0]).shape == (teacher.mask_size_px,) * 2

    def test_it_does_not_change_the_pictures(self, teacher: Teacher, images: list[np.ndarray]) -> None:
        before = [image.copy() for image in images]
        teacher.encode(images)
        assert all((image == old).all() for image, old in zip(images, before, strict=True))
