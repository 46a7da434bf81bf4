"""Scenes: a face in some light before some background, rendered in linear light on a canvas finer than the photograph.

``sample_scene`` draws everything that does not depend on the camera; ``render`` needs the camera's distance (for
perspective) and its flash, and is otherwise fixed by the parameters.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from blades_dist.simulate import features, surroundings
from blades_dist.simulate.features import Person
from blades_dist.simulate.head import HeadShape, Points, Relief, View, landmarks, relief, rotation, sample_shape
from blades_dist.simulate.textures import Image, black_body, piece

CANVAS_PER_IMAGE = 1.25  # canvas pixels per image pixel of the same side
FIELD = 1.12  # canvas field of view over the image's: room for lens distortion
_MELANIN = np.array([0.36, 0.70, 1.15], np.float32)  # absorption in R, G, B
_BLOOD = np.array([0.07, 0.40, 0.52], np.float32)


@dataclass(frozen=True)
class Light:
    """``lux`` at the face, colour temperatures of key and ambient light, and where the key comes from."""

    kind: str  # "night", "indoor", "shade", "sun"
    lux: float
    kelvin: float
    ambient_kelvin: float
    ambient: float  # share of the ambient light, 0 to 1
    direction: tuple[float, float, float]  # unit vector towards the key light, image axes
    softness: float


@dataclass(frozen=True)
class SceneParameters:
    """Everything about a scene that no camera changes. Angles in radians, lengths in millimetres."""

    shape: HeadShape
    person: Person
    light: Light
    yaw: float
    pitch: float
    roll: float
    box: tuple[float, float, float]  # centre x, centre y, height: fractions of the image
    background: str
    background_distance: float  # behind the face
    background_level: float
    subject_speed: tuple[float, float]  # millimetres per second in the image plane
    texture_seed: int


@dataclass(frozen=True)
class Scene:
    """A rendered scene. Radiances are relative: 1 is a white matte surface facing the key light.

    ``foreground`` (3, C, C) is only valid where ``alpha`` (C, C) is positive; ``background`` (3, C, C) is complete.
    ``landmarks`` (5, 2) are canvas pixels: eye at
    image left, eye at image right, nose tip, mouth corner at image left, mouth corner at image right.
    ``box`` is x, y, width, height in pixels of the finished image.
    """

    foreground: Image
    alpha: Image
    background: Image
    landmarks: Points
    box: tuple[float, float, float, float]
    lux: float
    kelvin: float
    distance: float
    background_distance: float
    pixels_per_mm: float  # of the finished image, at the face
    size: int
    subject_speed: tuple[float, float]

    @property
    def depth(self) -> Image:
        """Distance from the lens in millimetres (C, C)."""
        far = self.distance + self.background_distance
        return np.where(self.alpha > 0.5, np.float32(self.distance), np.float32(far))

    @property
    def radiance(self) -> Image:
        """The scene as a pinhole would see it, linear RGB (C, C, 3)."""
        return np.asarray(cv2.merge(list(self.background + self.alpha * (self.foreground - self.background))))


def sample_scene(rng: np.random.Generator) -> SceneParameters:
    """Draws a scene: who, how they look, in which light, before what."""
    shape = sample_shape(rng)
    light = _sample_light(rng)
    kind, behind = surroundings.sample_background(rng, light.kind)
    level = np.exp(rng.normal(-0.1, 0.5)) * (0.35 if light.kind == "night" else 1.0)
    height = float(rng.uniform(0.84, 0.92))
    # A crop of 1.3 times the box, centred on it, has to cover the image.
    slack = min(0.62 * height - 0.5, 0.03)
    centre = 0.5 + rng.uniform(-slack, slack, 2)
    return SceneParameters(
        shape=shape,
        person=_sample_person(rng),
        light=light,
        yaw=float(np.clip(rng.normal(0, 0.19), -0.42, 0.42)),
        pitch=float(np.clip(rng.normal(0, 0.1), -0.22, 0.22)),
        roll=float(np.clip(rng.normal(0, 0.07), -0.2, 0.2)),
        box=(float(centre[0]), float(centre[1]), height),
        background=kind,
        background_distance=behind,
        background_level=float(level),
        subject_speed=(float(rng.normal(0, 22)), float(rng.normal(0, 14))),
        texture_seed=int(rng.integers(2**31)),
    )


def _sample_light(rng: np.random.Generator) -> Light:
    kind = str(rng.choice(["night", "indoor", "shade", "sun"], p=[0.17, 0.4, 0.23, 0.2]))
    low, high = {"night": (6, 60), "indoor": (60, 900), "shade": (1200, 12000), "sun": (15000, 70000)}[kind]
    if kind in ("night", "indoor"):
        kelvin = float(rng.choice([2700, 3000, 3500, 4100, 5000, 6200], p=[0.2, 0.25, 0.15, 0.2, 0.12, 0.08]))
        other = kelvin + float(rng.uniform(-400, 1200))
    else:
        kelvin = float(rng.uniform(4800, 6000) if kind == "sun" else rng.uniform(5800, 7800))
        other = kelvin + float(rng.uniform(0, 3500))
    across, up = rng.normal(0, 0.65), rng.uniform(-0.15, 1.0)
    vector = np.array([across, -up, rng.uniform(0.35, 1.0)])
    vector /= np.linalg.norm(vector)
    return Light(
        kind=kind,
        lux=float(np.exp(rng.uniform(np.log(low), np.log(high)))),
        kelvin=kelvin,
        ambient_kelvin=other,
        ambient=float(rng.uniform(0.18, 0.4) if kind == "sun" else rng.uniform(0.3, 0.7)),
        direction=(float(vector[0]), float(vector[1]), float(vector[2])),
        softness=float(rng.uniform(0.0, 0.1) if kind == "sun" else rng.uniform(0.1, 0.5)),
    )


def _sample_person(rng: np.random.Generator) -> Person:
    melanin = float(np.exp(rng.normal(-0.6, 0.75)).clip(0.08, 2.0))
    age = float(rng.beta(1.5, 2.0))
    masculine = rng.random() < 0.5
    styles = ("bald", "buzz", "short", "parted", "curly", "fringe", "long", "wavy")
    weights = (0.09, 0.15, 0.33, 0.22, 0.12, 0.02, 0.05, 0.02) if masculine else (
        0.01, 0.03, 0.08, 0.14, 0.14, 0.17, 0.26, 0.17)  # fmt: skip
    style = str(rng.choice(styles, p=weights))
    dark = np.array([0.022, 0.015, 0.011])
    colours = np.array([dark, [0.055, 0.028, 0.014], [0.13, 0.065, 0.03], [0.36, 0.23, 0.1], [0.22, 0.075, 0.025]])
    light_skin = melanin < 0.6
    hair = colours[rng.choice(5, p=[0.2, 0.27, 0.25, 0.2, 0.08] if light_skin else [0.66, 0.26, 0.06, 0.01, 0.01])]
    grey = np.clip((age - 0.55) * 2.4 + rng.normal(0, 0.15), 0, 1)
    hair = (hair * (1 - grey) + np.array([0.36, 0.36, 0.36]) * grey) * np.exp(rng.normal(0, 0.15))
    irises = np.array([[0.045, 0.02, 0.01], [0.1, 0.05, 0.02], [0.12, 0.11, 0.04], [0.1, 0.16, 0.2], [0.08, 0.12, 0.2]])
    iris = irises[rng.choice(5, p=[0.15, 0.25, 0.2, 0.15, 0.25] if light_skin else [0.7, 0.24, 0.04, 0.01, 0.01])]
    smile = float(np.clip(rng.normal(0.3, 0.4), -0.3, 1))
    gape = max(0.0, float(rng.normal(3.2, 3.5))) if rng.random() < 0.45 else 0.0
    return Person(
        melanin=melanin,
        blood=float(rng.uniform(0.5, 1.25)),
        age=age,
        texture=float(rng.uniform(0.6, 1.3) * (0.7 + 0.7 * age)),
        freckles=float(max(0, rng.normal(-0.2, 0.5))) if light_skin else 0.0,
        iris=(iris * np.exp(rng.normal(0, 0.2))).astype(np.float32),
        hair=hair.astype(np.float32),
        hair_style=style,
        hair_volume=float({"buzz": 3, "curly": 26}.get(style, 14) * rng.uniform(0.7, 1.5)),
        parting=float(rng.normal(0, 16)) if style in ("parted", "long", "wavy") else 0.0,
        brow_thickness=float(rng.uniform(1.5, 3.4) * (1.15 if masculine else 0.85)),
        brow_tilt=float(rng.normal(0, 0.6)),
        beard=float(np.clip(rng.normal(0.25, 0.45), 0, 0.92)) if masculine else 0.0,
        lips=float(rng.uniform(0.55, 1.2) * (0.85 if masculine else 1.05)),
        lipstick=float(rng.uniform(0.2, 0.8)) if not masculine and rng.random() < 0.4 else 0.0,
        openness=float(np.clip(rng.normal(0.85, 0.15), 0.35, 1.2)),
        gaze=(float(rng.normal(0, 1.8)), float(rng.normal(0, 0.7))),
        smile=smile,
        gape=min(gape, 13.0),
        glasses=str(rng.choice(["none", "round", "square", "sun"], p=[0.76, 0.1, 0.11, 0.03])),
        glasses_colour=np.clip(np.exp(rng.normal(-2.6, 0.9)) * np.exp(rng.normal(0, 0.3, 3)), 0.01, 0.6).astype(
            np.float32
        ),
    )


def render(parameters: SceneParameters, size: int, distance: float, flash: float = 0.0) -> Scene:
    """Renders a scene for an image of ``size`` pixels.

    Args:
        parameters: what to render.
        size: side of the finished image, pixels.
        distance: from the lens to the head's middle, millimetres.
        flash: light of the camera's flash on the face, over that of the scene (0: no flash).
    """
    p, shape = parameters, parameters.shape
    rng = np.random.default_rng(p.texture_seed)
    side = 2 * round(CANVAS_PER_IMAGE * size / 2)
    view, pixels_per_mm = _view(p, size, side, distance)
    maps = relief(shape, view, side)
    skin = _skin(p.person, shape, maps, rng)
    tone = skin[:, side // 2 - side // 8 : side // 2 + side // 8, side // 2].mean(1)

    albedo = np.zeros((3, side, side), np.float32)
    alpha = np.zeros((side, side), np.float32)
    gloss = np.zeros((side, side), np.float32)
    surroundings.hair_back(albedo, alpha, p.person, shape, maps)
    surroundings.neck_and_clothes(albedo, alpha, p.person, tone, shape, view, rng)
    features.paint(skin, gloss, p.person, shape, view, maps, rng)
    face = surroundings.face_mask(shape, view, side, p.yaw)
    surroundings.lay(albedo, face, skin)
    gloss *= face
    np.maximum(alpha, face, out=alpha)
    surroundings.hair_front(albedo, alpha, gloss, p.person, shape, maps, rng)

    light = _irradiance(p.light, view, maps, flash, side)
    key = black_body(p.light.kelvin)
    light *= albedo
    light += gloss * key[:, None, None]
    foreground = light
    features.paint_glasses(foreground, p.person, shape, view, 0.8 * key, rng)
    surroundings.stray_hairs(foreground, alpha, p.person, view, rng)
    tint = p.background_level * black_body(p.light.ambient_kelvin)
    behind = surroundings.background(p.background, side, rng) * tint[:, None, None]
    if flash:
        behind *= 1 + flash * (distance / (distance + p.background_distance)) ** 2
    if p.background_distance < 700:
        shadow = features.shadow_of_head(side, view, p.light.direction[0])
        behind *= 1 - 0.45 * (1 - p.light.ambient) * shadow
    centre_x, centre_y, height = (value * size for value in p.box)
    width = 0.92 * height
    return Scene(
        foreground=foreground,
        alpha=alpha,
        background=behind,
        landmarks=landmarks(shape, view, 5.5 * p.person.smile),
        box=(centre_x - width / 2, centre_y - height / 2, width, height),
        lux=p.light.lux * (1 + flash),
        kelvin=p.light.kelvin,
        distance=distance,
        background_distance=p.background_distance,
        pixels_per_mm=pixels_per_mm,
        size=size,
        subject_speed=p.subject_speed,
    )


def _view(p: SceneParameters, size: int, side: int, distance: float) -> tuple[View, float]:
    """The view that puts hairline to chin into the parameters' box; also image pixels per millimetre."""
    tall = p.shape.chin_y - p.shape.hairline
    pixels_per_mm = p.box[2] * size / tall
    per_image = side / (FIELD * size)
    middle = 0.5 * (p.shape.chin_y + p.shape.hairline)
    centre_x = (p.box[0] - 0.5) * size * per_image + side / 2
    centre_y = (p.box[1] - 0.5) * size * per_image + side / 2 - middle * pixels_per_mm * per_image
    # The face's front is nearer than its middle, so perspective enlarges it: undo that for the box to fit.
    scale = pixels_per_mm * per_image * (1 - 45 / distance)
    view = View(rotation(p.yaw, p.pitch, p.roll), p.roll, (centre_x, centre_y), scale, distance)
    return view, pixels_per_mm


def _skin(person: Person, shape: HeadShape, maps: Relief, rng: np.random.Generator) -> Image:
    """Skin reflectance (3, side, side): Beer-Lambert absorption of melanin and blood over a white scatterer."""
    side = maps.x.shape[0]
    melanin = piece("blotches", rng, side, side) * (0.05 * person.melanin * (0.6 + person.age)) + person.melanin
    if person.freckles:
        spots = np.clip(piece("pores", rng, side, side) - 1.1, 0, 1.5)
        melanin += person.freckles * 0.35 * spots * np.clip(1 - np.abs(maps.y - shape.nose_y + 10) / 45, 0, 1)
    half_x, half_y = maps.half_x, maps.half_y
    cheeks = ((np.abs(half_x) - 42) * (1 / 20)) ** 2 + ((half_y - shape.nose_y + 4) * (1 / 17)) ** 2
    nose = (half_x * (1 / 14)) ** 2 + ((half_y - shape.nose_y) * (1 / 12)) ** 2
    flush = cv2.resize(np.maximum(cv2.exp(-0.5 * cheeks), 0.8 * cv2.exp(-0.5 * nose)), (side, side))
    blood = (0.09 * person.blood) * piece("blotches", rng, side, side)
    blood += (0.45 * person.blood) * flush
    blood += person.blood
    relief_of_pores = (0.035 * person.texture) * piece("pores", rng, side, side)
    relief_of_pores += (0.018 * person.texture) * piece("white", rng, side, side)
    skin = np.empty((3, side, side), np.float32)
    for plane, m, b in zip(skin, _MELANIN.tolist(), _BLOOD.tolist(), strict=True):
        cv2.exp(relief_of_pores - m * melanin - b * blood, dst=plane)
    skin *= np.float32(0.8)
    return skin


def _irradiance(light: Light, view: View, maps: Relief, flash: float, side: int) -> Image:
    """Light on every foreground pixel (3, side, side): wrapped Lambert key, sky-like ambient, frontal flash."""
    key = view.rotation.T @ np.array(light.direction, np.float32)
    front = view.rotation.T @ np.array([0, 0, 1], np.float32)
    up = view.rotation.T @ np.array([0, -1, 0], np.float32)
    n = maps.normal
    toward = key[0] * n[0] + key[1] * n[1] + key[2] * n[2]
    wrap = light.softness
    direct = np.maximum(toward + wrap, 0) * ((1 - light.ambient) / (1 + wrap))
    sky = (0.75 + 0.25 * (up[0] * n[0] + up[1] * n[1] + up[2] * n[2])) * maps.openness * light.ambient
    facing = np.maximum(front[0] * n[0] + front[1] * n[1] + front[2] * n[2], 0) * flash
    direct *= 0.5 + 0.5 * maps.openness
    parts = zip(black_body(light.kelvin), black_body(light.ambient_kelvin), black_body(5600), strict=True)
    total = np.empty((3, side, side), np.float32)
    for plane, (k, a, f) in zip(total, parts, strict=True):
        small = float(k) * direct + float(a) * sky + float(f) * facing
        cv2.resize(small, (side, side), dst=plane, interpolation=cv2.INTER_LINEAR)
    return total


def colour_of_light(light: Light) -> NDArray[np.floating]:
    """Average colour (3,) of the light on the face, what a perfect white balance would remove."""
    return light.ambient * black_body(light.ambient_kelvin) + (1 - light.ambient) * black_body(light.kelvin)
