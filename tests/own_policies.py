"""Policies of a user's that tests name as teachers, sound ones and broken ones."""

import numpy as np


class Centre:
    """Drives the point of `own_envs` to zero."""

    def __init__(self, *, width=1, scale=1.0):
        self.width, self.scale, self.started = width, scale, []

    def start(self, task, streams):
        self.started.append((task, len(streams)))

    def act(self, obs):
        assert self.started, "start comes first"
        wanted = np.clip(-2 * obs[:, :1], -1, 1) * self.scale
        return np.repeat(wanted, self.width, axis=1)


class Still:
    """Needs no task."""

    def act(self, obs):
        return np.zeros((len(obs), 1))


class InPlace(Centre):
    """Scales what it is given in place, and returns one array each time."""

    def start(self, task, streams):
        super().start(task, streams)
        self.action = np.zeros((len(streams), 1), np.float32)

    def act(self, obs):
        obs *= -2
        np.clip(obs[:, :1], -1, 1, out=self.action)
        return self.action


class Failing(Still):
    def act(self, obs):
        raise KeyError("weights")


def centre():
    return Centre()


def in_place():
    return InPlace()


def still():
    return Still()


def wide():
    return Centre(width=2)


def strong():
    return Centre(scale=float("nan"))


def failing():
    return Failing()


def nothing():
    return None


number = 3
