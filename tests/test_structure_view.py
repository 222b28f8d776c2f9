"""Whether the picture of a structure has the atoms, the cell and the forces that the structure has."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from dftfactory.errors import StructureError
from dftfactory.labels import structure_to_dict
from dftfactory.webgui.structure_view import BALL, element_colour, structure_figure


def traces(figure, **wanted):
    return [trace for trace in figure["data"] if all(trace.get(key) == value for key, value in wanted.items())]


def atom_traces(figure):
    return [trace for trace in figure["data"] if "meta" in trace]


def segments(trace):
    """The lines of a trace: plotly.js lifts the pen at None."""
    points = list(zip(trace["x"], trace["y"], trace["z"], strict=True))
    assert all(points[n] == (None, None, None) for n in range(2, len(points), 3))
    return [(np.array(points[n]), np.array(points[n + 1])) for n in range(0, len(points), 3)]


def test_each_element_is_one_trace_with_its_own_colour_and_size():
    figure = structure_figure(structure_to_dict(molecule("H2O", vacuum=3)))
    oxygen, hydrogen = atom_traces(figure)
    assert (oxygen["name"], hydrogen["name"]) == ("O (1)", "H (2)")
    # Jmol's red, and white; covalent radii of ASE: O 0.66 Å, H 0.31 Å.
    assert (oxygen["marker"]["color"], hydrogen["marker"]["color"]) == ("#ff0d0d", "#ffffff")
    assert oxygen["meta"]["radius"] == pytest.approx(BALL * 0.66)
    assert hydrogen["meta"]["radius"] == pytest.approx(BALL * 0.31)


def test_an_atom_says_its_number_as_pw_x_counts_and_its_force():
    silicon = bulk("Si")
    figure = structure_figure(structure_to_dict(silicon), [[0, 0, 0], [0, 3, 4]])
    assert atom_traces(figure)[0]["text"][1] == "Si, atom 2<br>1.3575, 1.3575, 1.3575 Å<br>force 5.0000 eV/Å"


def test_the_cell_is_drawn_with_its_twelve_edges_as_long_as_its_vectors():
    structure = bulk("Fe", "bcc", a=2.87, cubic=True)
    (cell,) = traces(structure_figure(structure_to_dict(structure)), name="cell")
    edges = segments(cell)
    assert len(edges) == 12
    assert [np.linalg.norm(end - start) for start, end in edges] == pytest.approx([2.87] * 12)
    corners = {tuple(point) for edge in edges for point in edge}
    assert len(corners) == 8


def test_a_slab_and_a_wire_have_the_edges_of_the_vectors_that_they_have():
    assert len(segments(traces(structure_figure(structure_to_dict(fcc111("Al", (1, 1, 3)))), name="cell")[0])) == 4
    wire = Atoms("H", cell=[0, 0, 2], pbc=(False, False, True))
    assert len(segments(traces(structure_figure(structure_to_dict(wire)), name="cell")[0])) == 1
    assert traces(structure_figure(structure_to_dict(molecule("O2"))), name="cell") == []


def test_atoms_that_touch_are_bonded_and_metals_are_not():
    water = structure_figure(structure_to_dict(molecule("H2O", vacuum=3)))
    (bonds,) = traces(water, name="bonds")
    assert len(segments(bonds)) == 2  # O-H twice, and no H-H
    assert traces(structure_figure(structure_to_dict(bulk("Al", cubic=True))), name="bonds") == []


def test_arrows_point_along_the_forces_and_are_as_long_in_proportion():
    structure = bulk("Si", cubic=True)
    forces = np.zeros((8, 3))
    forces[0], forces[5] = (2.0, 0, 0), (0, -1.0, 0)
    figure = structure_figure(structure_to_dict(structure), forces)
    lines, heads = traces(figure, legendgroup="forces")
    assert lines["name"] == "forces (longest 2.000 eV/Å)"
    (first, _), (second, _) = segments(lines)
    assert first == pytest.approx(structure.positions[0], abs=1e-4)
    assert second == pytest.approx(structure.positions[5], abs=1e-4)
    # The tip is the first of the six corners of a head.
    corners = np.array([heads["x"], heads["y"], heads["z"]]).T
    long, short = corners[0] - structure.positions[0], corners[6] - structure.positions[5]
    assert long / np.linalg.norm(long) == pytest.approx([1, 0, 0], abs=1e-3)
    assert short / np.linalg.norm(short) == pytest.approx([0, -1, 0], abs=1e-3)
    assert np.linalg.norm(long) == pytest.approx(2 * np.linalg.norm(short), rel=1e-3)


def test_forces_that_are_noise_get_no_arrows():
    structure = structure_to_dict(bulk("Si"))
    assert traces(structure_figure(structure, np.full((2, 3), 1e-5)), legendgroup="forces") == []
    assert traces(structure_figure(structure, None), legendgroup="forces") == []


def test_one_angstrom_is_as_long_in_each_direction_and_the_camera_stays():
    """A slab of 3 x 3 x 20 Å is drawn as long as that, whatever plotly.js would make of its ranges."""
    figure = structure_figure(structure_to_dict(fcc111("Al", (1, 1, 3), vacuum=8)))
    scene = figure["layout"]["scene"]
    ranges = [scene[f"{name}axis"]["range"] for name in "xyz"]
    per_angstrom = [
        scene["aspectratio"][name] / (end - begin) for name, (begin, end) in zip("xyz", ranges, strict=True)
    ]
    assert per_angstrom == pytest.approx([per_angstrom[0]] * 3, rel=1e-3)
    assert figure["layout"]["uirevision"] == "structure"


def test_the_picture_does_not_move_when_forces_are_switched_off():
    structure = structure_to_dict(bulk("Si"))
    scene = structure_figure(structure, [[9.0, 0, 0], [0, 0, 0]])["layout"]["scene"]
    assert scene["xaxis"]["range"][1] >= 2.715  # the corner of the cell
    assert all("range" in scene[f"{name}axis"] for name in "xyz")


@pytest.mark.parametrize("number", [1, 2, 500, 1728])
def test_small_and_large_structures_are_plain_json(number):
    size = round(number ** (1 / 3))
    structure = Atoms("H") if number == 1 else bulk("Al", cubic=True).repeat((size, size, size))[:number]
    structure.rattle(0.1, seed=1)
    forces = np.random.default_rng(1).normal(size=(len(structure), 3))
    figure = structure_figure(structure_to_dict(structure), forces)
    assert json.loads(json.dumps(figure, allow_nan=False)) == figure
    assert sum(len(trace["x"]) for trace in atom_traces(figure)) == len(structure)


def test_what_is_no_structure_is_refused_with_a_word():
    structure = structure_to_dict(bulk("Si"))
    with pytest.raises(StructureError, match="damaged"):
        structure_figure({})
    with pytest.raises(StructureError, match="damaged"):
        structure_figure(structure | {"symbols": ["Si", "<script>"]})
    with pytest.raises(StructureError, match="no atoms"):
        structure_figure(structure_to_dict(Atoms()))
    with pytest.raises(StructureError, match="not finite"):
        structure_figure(structure | {"positions": [[0, 0, 0], [0, 0, float("nan")]]})
    # Its picture would have an infinity, which is no JSON: the whole script of the page ended there.
    with pytest.raises(StructureError, match="cannot be drawn"):
        structure_figure(structure | {"cell": [[1e308, 0, 0], [0, 1e308, 0], [0, 0, 1e308]]})
    with pytest.raises(StructureError, match="2 finite forces"):
        structure_figure(structure, [[0, 0, 1]])


def test_elements_beyond_jmols_table_have_a_colour():
    assert element_colour("Og").startswith("#")
