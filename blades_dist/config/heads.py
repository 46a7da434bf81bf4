"""The configuration section of every kind of detector head, and what a sweep may search in it.

Only keys are here, so that a configuration is read without torch; ``detect.heads`` holds the heads themselves.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from blades_dist.settings import Config


class HeadConfig(Config):
    """Section of one kind of head, named like it in the fit configuration.

    ``search`` is what a sweep tries by default, key to range or choices (``tuning.space.Dimension``); a kind that
    ``needs_generated`` is fitted to AI-generated faces too.
    """

    kind: ClassVar[str]
    needs_generated: ClassVar[bool] = False
    search: ClassVar[Mapping[str, Any]] = {}


class MixtureConfig(HeadConfig):
    """Gaussian mixture; names are those of scikit-learn's ``GaussianMixture``."""

    kind = "oc"
    search: ClassVar = {
        "n_components": {"low": 1, "high": 32, "log": True},
        "covariance_type": ["full", "tied", "diag", "spherical"],
        "n_pca_components": [None, 16, 32, 64],
        "reg_covar": {"low": 1e-8, "high": 1e-3, "log": True},
    }
    renamed: ClassVar = {
        "components": "n_components",
        "covariance": "covariance_type",
        "pca": "n_pca_components",
        "regularisation": "reg_covar",
        "starts": "n_init",
        "iterations": "max_iter",
    }

    n_components: int | list[int] = Field(
        10, description="Gaussians of the mixture; several sizes: choose_by picks one"
    )
    choose_by: Literal["held_out", "bic"] = Field(
        "held_out", description="held_out: highest likelihood of the held-out share; bic: lowest on the fitted rows"
    )
    held_out: float = Field(0.1, gt=0, le=0.5, description="share of the training faces that tells sizes apart")
    covariance_type: Literal["full", "tied", "diag", "spherical"] = "full"
    n_pca_components: int | None = Field(
        None, ge=1, description="whitened principal components kept (PCA's n_components); None: raw features"
    )
    reg_covar: float = Field(1e-6, gt=0, description="added to covariance diagonals")
    n_init: int = Field(3, ge=1, description="runs of EM, of which the best is kept")
    max_iter: int = Field(300, ge=1, description="EM iterations at most, each run")

    @field_validator("n_components")
    @classmethod
    def _sizes(cls, value: int | list[int]) -> int | list[int]:
        sizes = [value] if isinstance(value, int) else value
        if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise ValueError(f"one size or several different ones, each at least 1, not {value}")
        return value

    @property
    def sizes(self) -> list[int]:
        """The sizes to fit, in ascending order."""
        return [self.n_components] if isinstance(self.n_components, int) else sorted(self.n_components)


class MahalanobisConfig(HeadConfig):
    """One Gaussian; ``shrinkage`` is that of scikit-learn's ``ShrunkCovariance``."""

    kind = "mahalanobis"
    search: ClassVar = {"shrinkage": {"low": 0.0, "high": 1.0}}

    shrinkage: float | None = Field(
        None, ge=0, le=1, description="share of the scaled identity in the covariance; None: Ledoit and Wolf's estimate"
    )


class KnnConfig(HeadConfig):
    """Nearest neighbours; ``k`` is that of Sun et al. 2022."""

    kind = "knn"
    search: ClassVar = {"k": {"low": 1, "high": 50, "log": True}}

    k: int = Field(10, ge=1, description="nearest real faces that are looked at")
    bank: int = Field(20_000, ge=1, description="real faces to compare with, at most; a seeded sample of them")
    distance: Literal["kth", "mean"] = Field("kth", description="kth: to the k-th nearest; mean: over the k nearest")

    @model_validator(mode="after")
    def _enough(self) -> "KnnConfig":
        if self.k > self.bank:
            raise ValueError(f"k: {self.k} nearest of a bank of {self.bank} do not exist")
        return self


class PerceptronConfig(HeadConfig):
    """Perceptron trained by AdamW; names are torch's."""

    kind = "bc"
    needs_generated = True

    hidden: int = Field(1536, ge=1)
    epochs: int = Field(50, ge=1, description="at most; held-out faces say how many")
    patience: int = Field(10, ge=1, description="epochs without a lower held-out loss before training stops")
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    batch_size: int = Field(256, ge=1)
    pseudo_outliers: float = Field(0.05, ge=0, lt=1, description="share of real faces of lowest likelihood")


# By kind. ``detect.heads.register`` adds what is not of this project.
SECTIONS: dict[str, type[HeadConfig]] = {
    section.kind: section for section in (MixtureConfig, MahalanobisConfig, KnnConfig, PerceptronConfig)
}


def one_class() -> list[str]:
    """The kinds that are fitted to real faces alone."""
    return [kind for kind, section in SECTIONS.items() if not section.needs_generated]
