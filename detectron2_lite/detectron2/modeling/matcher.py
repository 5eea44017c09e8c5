"""Assigns to every prediction one ground-truth element and a label."""

import torch


class Matcher:
    """Matches each of N predictions to the ground truth of highest quality, by thresholds.

    With thresholds [0.3, 0.7] and labels [0, -1, 1] a prediction whose best quality (IoU as a
    rule) is below 0.3 gets 0 (background), below 0.7 gets -1 (ignored) and otherwise 1
    (foreground).
    """

    def __init__(
        self, thresholds: list[float], labels: list[int], allow_low_quality_matches: bool = False
    ) -> None:
        """
        Args:
            thresholds: rising and positive; a quality equal to one lies above it.
            labels: -1, 0 or 1 for each interval, one more than thresholds.
            allow_low_quality_matches: also label 1 what is nobody's best match above the
                thresholds but the best that some ground truth has (Faster R-CNN, section 3.1.2).
        """
        thresholds = list(thresholds)
        assert thresholds and thresholds[0] > 0 and thresholds == sorted(thresholds), (
            f"Matcher needs positive rising thresholds, got {thresholds}."
        )
        assert all(label in (-1, 0, 1) for label in labels), (
            f"Labels of Matcher are -1, 0 or 1, got {labels}."
        )
        assert len(labels) == len(thresholds) + 1, (
            f"Matcher needs one label more than thresholds, got {labels} for {thresholds}."
        )
        self.thresholds = [-float("inf"), *thresholds, float("inf")]
        self.labels = labels
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            match_quality_matrix: (M, N), at least 0: M ground-truth elements by N predictions.

        Returns:
            (N,) int64 index of the best ground truth, 0 where M is 0; and
            (N,) int8 labels, all ``labels[0]`` where M is 0.
        """
        assert match_quality_matrix.dim() == 2, (
            f"Matcher takes a matrix, got shape {tuple(match_quality_matrix.shape)}."
        )
        num_predictions = match_quality_matrix.size(1)
        if match_quality_matrix.numel() == 0:
            matches = match_quality_matrix.new_zeros(num_predictions, dtype=torch.int64)
            return matches, torch.full_like(matches, self.labels[0], dtype=torch.int8)
        assert match_quality_matrix.min() >= 0, "Matcher needs qualities of at least 0, none NaN."

        quality, matches = match_quality_matrix.max(dim=0)
        match_labels = torch.full_like(matches, self.labels[0], dtype=torch.int8)
        # Rising thresholds: the last one that is reached has the last word.
        for threshold, label in zip(self.thresholds[1:-1], self.labels[1:]):
            match_labels[quality >= threshold] = label
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(match_labels, match_quality_matrix)
        return matches, match_labels

    def set_low_quality_matches_(
        self, match_labels: torch.Tensor, match_quality_matrix: torch.Tensor
    ) -> None:
        """Label 1, in place, the predictions that are the best some ground truth has, ties too.

        Only labels change: such a prediction stays matched to *its* best ground truth, which can
        be another one.
        """
        best_of_gt = match_quality_matrix.amax(dim=1, keepdim=True)
        match_labels[(match_quality_matrix == best_of_gt).any(dim=0)] = 1
