# SPDX-License-Identifier: Apache-2.0
"""Scores against hand-computed cases, and the properties that define each transform."""

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from vggtquant.errors import UserError
from vggtquant.scoring import geometry

Array = NDArray[np.float64]

QUATERNIONS = arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(
    lambda q: np.linalg.norm(q) > 0.1
)


def turn(axis: int, degrees: float) -> Array:
    """Rotation about a coordinate axis, right-handed."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    m = np.eye(3)
    m[[i, j], [i, j]] = c
    m[i, j], m[j, i] = -s, s
    return m


def pose(rotation: Array, translation: list[float]) -> Array:
    return np.concatenate([rotation, np.array(translation, float)[:, None]], axis=1)


def test_docstring_examples() -> None:
    assert doctest.testmod(geometry).failed == 0


# Cameras ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", range(3))
def test_quaternions_are_xyzw(axis: int) -> None:
    q = np.zeros(4)
    q[axis], q[3] = math.sin(math.radians(20)), math.cos(math.radians(20))
    np.testing.assert_allclose(geometry.quaternion_to_matrix(q), turn(axis, 40), atol=1e-15)
    np.testing.assert_allclose(geometry.matrix_to_quaternion(turn(axis, 40)), q, atol=1e-15)


@given(QUATERNIONS)
@settings(max_examples=200, deadline=None)
def test_quaternions_of_any_length_make_rotations_and_come_back(q: Array) -> None:
    m = geometry.quaternion_to_matrix(q)
    np.testing.assert_allclose(m @ m.T, np.eye(3), atol=1e-13)
    assert np.linalg.det(m) == pytest.approx(1)
    back = geometry.matrix_to_quaternion(m)
    assert back[3] >= 0
    unit = q / np.linalg.norm(q)
    assert min(np.abs(back - unit).max(), np.abs(back + unit).max()) < 1e-12


@pytest.mark.parametrize("axis", range(3))
def test_half_turns(axis: int) -> None:
    q = geometry.matrix_to_quaternion(turn(axis, 180))
    np.testing.assert_allclose(np.abs(q), np.eye(4)[axis], atol=1e-15)


def test_a_decoded_camera_by_hand() -> None:
    fov_h, fov_w = 2 * math.atan(0.5), 2 * math.atan(0.25)
    encoded = [1, 2, 3, 0, 0, 5 * math.sin(math.pi / 4), 5 * math.cos(math.pi / 4), fov_h, fov_w]
    extrinsics, intrinsics = geometry.decode_pose(encoded, (100, 60))
    np.testing.assert_allclose(extrinsics, pose(turn(2, 90), [1, 2, 3]), atol=1e-15)
    np.testing.assert_allclose(intrinsics, [[120, 0, 30], [0, 100, 50], [0, 0, 1]], rtol=1e-15)


def test_poses_survive_encoding() -> None:
    rng = np.random.default_rng(7)
    encoded = rng.normal(size=(2, 5, 9))
    encoded[..., 7:] = rng.uniform(0.2, 2.5, (2, 5, 2))
    cameras = geometry.decode_pose(encoded, (35, 49))
    again = geometry.decode_pose(geometry.encode_pose(*cameras, (35, 49)), (35, 49))
    for a, b in zip(cameras, again, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12, rtol=1e-12)


def test_unprojected_points_project_back_to_their_pixels() -> None:
    rng = np.random.default_rng(0)
    encoded = rng.normal(size=(3, 9))
    encoded[:, 7:] = rng.uniform(0.5, 1.5, (3, 2))
    extrinsics, intrinsics = geometry.decode_pose(encoded, (6, 8))
    depth = rng.uniform(0.5, 4, (3, 6, 8))
    world = geometry.unproject(depth, extrinsics, intrinsics)
    np.testing.assert_array_equal(
        world, geometry.unproject(depth[..., None], extrinsics, intrinsics)
    )
    for s in range(3):
        camera = world[s].reshape(-1, 3) @ extrinsics[s, :, :3].T + extrinsics[s, :, 3]
        pixels = camera @ intrinsics[s].T
        u, v = pixels[:, :2].T / pixels[:, 2]
        np.testing.assert_allclose(u.reshape(6, 8), np.tile(np.arange(8), (6, 1)), atol=1e-9)
        np.testing.assert_allclose(v.reshape(6, 8), np.tile(np.arange(6), (8, 1)).T, atol=1e-9)
        np.testing.assert_allclose(camera[:, 2].reshape(6, 8), depth[s], atol=1e-9)


# Pose errors -----------------------------------------------------------------------------------


def test_pose_errors_by_hand() -> None:
    truth = [pose(np.eye(3), [0, 0, 0]), pose(np.eye(3), [1, 0, 0])]
    predicted = [truth[0], pose(turn(2, 10), [0, -3, 0])]
    errors = geometry.relative_pose_errors(predicted, truth)
    np.testing.assert_allclose(errors.rotation, [10], atol=1e-9)
    np.testing.assert_allclose(errors.translation, [90], atol=1e-9)  # (1,0,0) against (0,-3,0)
    opposite = geometry.relative_pose_errors([truth[0], pose(np.eye(3), [-2, 0, 0])], truth)
    np.testing.assert_allclose(opposite.translation, [0], atol=1e-9)  # folded
    np.testing.assert_allclose(opposite.direction, [180], atol=1e-9)


def test_pairs_are_all_pairs_in_order() -> None:
    truth = np.stack([pose(np.eye(3), [0, 0, float(s)]) for s in range(4)])
    predicted = truth.copy()
    predicted[3, :, :3] = turn(0, 4)
    rotation = geometry.relative_pose_errors(predicted, truth).rotation
    np.testing.assert_allclose(rotation, [0, 0, 4, 0, 4, 4], atol=1e-9)


def test_the_world_of_either_side_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    encoded = rng.normal(size=(5, 9))
    truth, _ = geometry.decode_pose(encoded, (10, 10))
    predicted, _ = geometry.decode_pose(encoded + 0.1 * rng.normal(size=(5, 9)), (10, 10))
    expected = geometry.relative_pose_errors(predicted, truth)
    world = np.vstack([pose(turn(1, 33) @ turn(0, 12), [3, -2, 5]), [0, 0, 0, 1]])
    moved = predicted[:, :, :3] @ world[:3, :3], predicted @ world[:, 3:]
    again = geometry.relative_pose_errors(np.concatenate(moved, axis=2), truth)
    np.testing.assert_allclose(again.rotation, expected.rotation, atol=1e-9)
    np.testing.assert_allclose(again.direction, expected.direction, atol=1e-9)
    assert (expected.direction > 0.1).all()


def test_equal_and_undefined_poses() -> None:
    truth = np.stack([pose(turn(0, 5 * s), [0, 0, 0.1 * s * s]) for s in range(3)])
    same = geometry.relative_pose_errors(truth, truth)
    assert same.rotation.max() == 0
    assert same.translation.max() == 0
    still = geometry.relative_pose_errors(np.stack([np.eye(3, 4)] * 3), truth)
    np.testing.assert_array_equal(still.translation, [90, 90, 90])
    broken = truth.copy()
    broken[1] = np.nan
    errors = geometry.relative_pose_errors(broken, truth)
    np.testing.assert_array_equal(errors.rotation, [1e6, 0, 1e6])
    np.testing.assert_array_equal(errors.translation, [1e6, 0, 1e6])


def test_auc_by_hand() -> None:
    rotation, translation = np.array([0.2, 1.0, 2.5, 3.0, 50.0]), np.array([0.9, 0, 0, 0, 0])
    # Errors 0.9, 1.0, 2.5, 3.0, 50: bins [0,1) 1, [1,2) 1, [2,3] 2 (the last edge counts), of 5.
    assert geometry.pose_auc(rotation, translation, 3) == pytest.approx((0.2 + 0.4 + 0.8) / 3)
    # To 5: bins 1, 1, 1, 1, 0 of 5: the error of 3.0 now has a bin of its own.
    assert geometry.pose_auc(rotation, translation, 5) == pytest.approx(
        (0.2 + 0.4 + 0.6 + 0.8 + 0.8) / 5
    )
    scores = geometry.pose_scores(geometry.PoseErrors(rotation, translation))
    assert scores["rra_3"] == 0.6  # 3.0 is not below 3
    assert scores["rra_30"] == 0.8
    assert scores["rta_3"] == 1
    assert scores["rotation_median_deg"] == 2.5
    assert geometry.pose_auc([np.nan], [0.0], 30) == 0


# Depth -----------------------------------------------------------------------------------------


def test_depth_scores_by_hand() -> None:
    truth = np.array([1.0, 2.0, 4.0, 0.0, np.nan, 5.0])
    predicted = np.array([1.2, 1.0, 4.0, 7.0, 7.0, 7.0])
    mask = [True, True, True, True, True, False]
    scores = geometry.depth_scores(predicted, truth, mask)
    assert scores["abs_rel"] == pytest.approx((0.2 + 0.5 + 0) / 3)
    assert scores["rmse"] == pytest.approx(math.sqrt((0.04 + 1 + 0) / 3))
    assert scores["delta_1.25"] == pytest.approx(2 / 3)
    assert geometry.depth_scores([1.25], [1.0])["delta_1.25"] == 0  # below 1.25, not up to


def test_median_alignment_by_hand() -> None:
    truth, predicted = np.array([2.0, 4.0, 12.0]), np.array([1.0, 2.0, 3.0])
    scores = geometry.depth_scores(predicted, truth, align=True)  # times 4 / 2
    assert scores["abs_rel"] == pytest.approx(0.5 / 3)
    assert scores["rmse"] == pytest.approx(6 / math.sqrt(3))


def test_a_depth_that_is_no_number_shows() -> None:
    scores = geometry.depth_scores([np.nan, 1.0], [1.0, 1.0])
    assert math.isnan(scores["abs_rel"])
    assert math.isnan(scores["rmse"])
    assert scores["delta_1.25"] == 0.5


# Points ----------------------------------------------------------------------------------------


@given(
    arrays(np.float64, (6, 3), elements=st.floats(-5, 5)).filter(
        lambda x: np.linalg.svd(x - x.mean(0))[1][1] > 0.1
    ),
    QUATERNIONS,
    st.floats(0.1, 9),
)
@settings(max_examples=100, deadline=None)
def test_umeyama_finds_an_exact_similarity(points: Array, q: Array, scale: float) -> None:
    rotation, shift = geometry.quaternion_to_matrix(q), np.array([1.0, -2, 3])
    target = scale * points @ rotation.T + shift
    found = geometry.umeyama(points, target)
    assert found.scale == pytest.approx(scale)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-6)
    np.testing.assert_allclose(found(points), target, atol=1e-8)


def test_umeyama_never_reflects() -> None:
    points = np.random.default_rng(0).normal(size=(20, 3))
    mirrored = points * [1, 1, -1]
    found = geometry.umeyama(points, mirrored)
    assert np.linalg.det(found.rotation) == pytest.approx(1)
    assert geometry.umeyama(points, 3 * points, with_scale=False).scale == 1


def test_umeyama_turns_a_flat_mirror_image_over() -> None:
    """The triangles of Umeyama 1991, section 4, put into space."""
    source = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0]], float)
    target = np.array([[0, 0, 0], [-1, 0, 0], [0, 2, 0]], float)
    found = geometry.umeyama(source, target, with_scale=True)
    # A half turn about the y axis does in space what no rotation in the plane can.
    np.testing.assert_allclose(found(source), target, atol=1e-12)
    assert found.scale == pytest.approx(1)


def test_umeyama_of_coinciding_points_shifts_them() -> None:
    found = geometry.umeyama(np.ones((2, 3)), [[0, 0, 0], [0, 4.0, 0]])
    np.testing.assert_allclose(found(np.ones((1, 3))), [[0, 2, 0]])


def test_point_scores_by_hand() -> None:
    predicted = [[0, 0, 0], [0, 0, 2.0]]
    truth = [[0, 0, 1.0], [0, 3, 0], [4, 0, 0]]
    scores = geometry.point_scores(predicted, truth)
    assert scores["accuracy"] == 1
    assert scores["completeness"] == pytest.approx((1 + 3 + 4) / 3)
    assert scores["chamfer"] == pytest.approx((1 + 8 / 3) / 2)


def test_queries_are_spread_and_searched_in_the_whole_cloud() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(3000, 3)), rng.uniform(size=(2000, 3))
    full = geometry.point_scores(a, b)
    some = geometry.point_scores(a, b, queries=700)
    assert some["chamfer"] == pytest.approx(full["chamfer"], rel=0.05)
    brute = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min(1).mean()
    assert full["accuracy"] == pytest.approx(brute)
    assert math.isnan(geometry.point_scores(a * np.nan, b)["chamfer"])


def test_bad_input_is_one_clear_line() -> None:
    eye = np.eye(3, 4)
    cases = [
        (lambda: geometry.relative_pose_errors([eye], [eye]), "2 or more poses"),
        (lambda: geometry.relative_pose_errors([eye] * 2, [eye] * 3), r"\(2, 4, 4\).*\(3, 4, 4\)"),
        (lambda: geometry.depth_scores([1.0], [0.0]), "no pixel has a true depth"),
        (lambda: geometry.depth_scores([1.0], [1.0, 2.0]), r"\(1,\) and \(2,\)"),
        (lambda: geometry.umeyama(np.ones((4, 2)), np.ones((4, 2))), r"\(N,3\)"),
        (lambda: geometry.point_scores(np.zeros((0, 3)), np.ones((4, 3))), "got 0 and 4"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()
