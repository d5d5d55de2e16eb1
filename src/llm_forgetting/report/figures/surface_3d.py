"""Figure of a loss surface in three dimensions."""

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from mpl_toolkits.mplot3d.axes3d import Axes3D
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from llm_forgetting.arrays import Floats
from llm_forgetting.landscape.metrics import FLAT_RANGE
from llm_forgetting.report.figures.contours import COLOURS, own_levels, shared_norm
from llm_forgetting.report.figures.layout import lay_out
from llm_forgetting.report.figures.style import CHECKPOINT, direction_ticks, ticks_between
from llm_forgetting.report.figures.surfaces import with_step
from llm_forgetting.report.views.surfaces import SurfaceView

ELEVATION, AZIMUTH = 30, -55
PROPORTIONS = (1.0, 1.0, 0.8)
# Towards the lamp, of length 1.
LIGHT = (-0.5, -0.3, 0.81)


def single_3d(surface: SurfaceView) -> Figure:
    """One surface in three dimensions over its own contours, as high as its box; height and colour both are the loss."""
    panels = lay_out({(0, 0): with_step(surface)}, aspect=0.95, x_label="", y_labels=[""], left=0.0, right=0.6)
    panels.axes[0, 0].set_axis_off()
    panel = panels.axes[0, 0].get_position()
    place = (panel.x0 - 0.02, panel.y0 - 0.07, panel.width + 0.08, panel.height + 0.1)
    axes: Axes3D = panels.figure.add_axes(place, projection="3d", computed_zorder=False, proj_type="ortho")
    finite, norm = surface.values[np.isfinite(surface.values)], shared_norm([surface.values])
    low, height = float(finite.min()) if finite.size else 0.0, surface.rise if surface.rise > FLAT_RANGE else 1.0
    floor = low - 0.4 * height
    _box(axes, surface)
    axes.set_zlim(floor, low + 1.02 * height)
    ticks_between(axes.zaxis, low, low + height)
    _floor(axes, surface, floor)
    _faces(axes, surface, norm, height)
    _mesh(axes, surface)
    axes.plot([0], [0], [surface.centre], zorder=4, **CHECKPOINT)
    return panels.figure


def _box(axes: Axes3D, surface: SurfaceView) -> None:
    """Axes without clutter: no panes, few ticks, labels close by."""
    axes.patch.set_visible(False)
    axes.set(xlabel="direction 1", ylabel="direction 2", zlabel="loss (nats)")
    axes.set(xlim=surface.alphas[[0, -1]], ylim=surface.betas[[0, -1]])
    axes.view_init(elev=ELEVATION, azim=AZIMUTH)
    axes.set_box_aspect(PROPORTIONS, zoom=1.0)
    direction_ticks(axes.xaxis)
    direction_ticks(axes.yaxis)
    for axis, pad in ((axes.xaxis, -6), (axes.yaxis, -4), (axes.zaxis, -4)):
        axis.labelpad = pad
        axis.set_tick_params(pad=-2)
        axis.set_pane_color((1, 1, 1, 0))
        axis._axinfo["grid"].update(color="0.88", linewidth=0.5)


def _floor(axes: Axes3D, surface: SurfaceView, floor: float) -> None:
    levels = own_levels(surface.values)
    if levels.size:
        values = np.ma.masked_invalid(surface.values)
        axes.contour(
            surface.alphas, surface.betas, values.T, levels=levels, zdir="z", offset=floor, colors="0.55", linewidths=0.6,
            zorder=1,
        )  # fmt: skip


def _faces(axes: Axes3D, surface: SurfaceView, norm: Normalize, height: float) -> None:
    """The surface, coloured by loss and lit from the left; cells with a corner that is not finite stay open."""
    places = _places(surface)
    corners = np.stack([places[:-1, :-1], places[1:, :-1], places[1:, 1:], places[:-1, 1:]], axis=2)
    cells = corners[np.isfinite(corners).all(axis=(2, 3))]
    colours = mpl.colormaps[COLOURS](norm(cells[..., 2].mean(axis=1)))
    colours[:, :3] = np.clip(colours[:, :3] * _brightness(cells, surface, height)[:, None], 0, 1)
    faces = Poly3DCollection(cells, facecolors=colours, edgecolors=colours, linewidths=0.3, zorder=2)
    faces.set_rasterized(True)
    axes.add_collection3d(faces)


def _brightness(cells: Floats, surface: SurfaceView, height: float) -> Floats:
    """Of cells (n, 4, 3): slopes that face the light a little lighter, the others darker, in the box's own proportions."""
    scaled = cells / (np.ptp(surface.alphas), np.ptp(surface.betas), height)
    normal = np.cross(scaled[:, 2] - scaled[:, 0], scaled[:, 3] - scaled[:, 1])
    light = normal @ np.array(LIGHT) / np.linalg.norm(normal, axis=1)
    return np.asarray(1 + 0.3 * (light - LIGHT[2]))


def _places(surface: SurfaceView) -> Floats:
    """(R, R, 3) the surface's nodes in space; not finite ones are NaN."""
    alphas, betas = np.meshgrid(surface.alphas, surface.betas, indexing="ij")
    return np.stack([alphas, betas, np.where(np.isfinite(surface.values), surface.values, np.nan)], axis=-1)


def _mesh(axes: Axes3D, surface: SurfaceView) -> None:
    """Light lines over the surface, a few of its own rows and columns, where no other part of it is in front of them."""
    places = _places(surface)
    seen = np.where(_visible(axes, surface, places)[..., None], places, np.nan)
    stride = max(1, (len(surface.alphas) - 1) // 10)
    for line in (*seen[::stride], *seen[:, ::stride].transpose(1, 0, 2)):
        axes.plot(*line.T, color="white", linewidth=0.4, alpha=0.55, zorder=3)


def _visible(axes: Axes3D, surface: SurfaceView, places: Floats) -> NDArray[np.bool_]:
    """Whether the way from each place to the camera crosses the surface: changes from above it to below it, or back."""
    elevation, azimuth = np.radians((ELEVATION, AZIMUTH))
    towards = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    spans = np.array([np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim()), np.ptp(axes.get_zlim())])
    way = np.linspace(0.03, 1.5, 90)[:, None, None, None] * (towards * spans / PROPORTIONS)
    rays = places + way
    cells = [(rays[..., k] - axis[0]) / (axis[1] - axis[0]) for k, axis in enumerate((surface.alphas, surface.betas))]
    ground = map_coordinates(places[..., 2], cells, order=1, mode="constant", cval=np.nan)
    above = np.sign(rays[..., 2] - ground)
    return np.asarray(~((above > 0).any(axis=0) & (above < 0).any(axis=0)))
