"""One photograph from scene to finished pixels: the order in which the parts of the simulation act."""

from dataclasses import dataclass

import numpy as np

from blades_dist.simulate.camera import Settings, expose, plan_shot
from blades_dist.simulate.develop import develop
from blades_dist.simulate.exif_out import Container, sample_container
from blades_dist.simulate.head import Points
from blades_dist.simulate.makers import sample_maker
from blades_dist.simulate.scene import Light, Scene, render, sample_scene
from blades_dist.simulate.sensor import MARGIN, expose_raw, through_lens
from blades_dist.simulate.textures import Image


@dataclass(frozen=True)
class Shot:
    """A finished picture with all that is known about it.

    ``wide`` (size + 12, size + 12, 3) is float32 in 0..255, not yet rounded, and has a margin of 6 pixels around the
    picture for filters to run into. Landmarks and box are pixels of the picture without its margin.
    """

    wide: Image
    settings: Settings
    container: Container
    landmarks: Points
    box: tuple[float, float, float, float]

    @property
    def pixels(self) -> Image:
        """The picture (size, size, 3)."""
        return without_margin(self.wide)


def without_margin(wide: Image) -> Image:
    """The picture (size, size, 3) inside (size + 12, size + 12, 3)."""
    return np.ascontiguousarray(wide[MARGIN:-MARGIN, MARGIN:-MARGIN])


def shoot(rng: np.random.Generator, size: int) -> Shot:
    """Draws a scene, a camera and a shot, and takes it."""
    parameters = sample_scene(rng)
    maker, body = sample_maker(rng)
    plan = plan_shot(maker, body, parameters.light, rng)
    scene = render(parameters, size, plan.distance, plan.flash)
    settings = expose(plan, scene, parameters.light, rng)
    wide, points = photograph_scene(scene, settings, parameters.light, rng)
    return Shot(wide, settings, sample_container(maker, rng), points, scene.box)


def photograph_scene(scene: Scene, settings: Settings, light: Light, rng: np.random.Generator) -> tuple[Image, Points]:
    """Pixels with their margin (size + 12, size + 12, 3) in 0..255, and landmarks (5, 2), of a given scene under
    given settings."""
    image, points = through_lens(scene, settings, rng)
    return develop(expose_raw(image, settings, light, rng), settings), points
