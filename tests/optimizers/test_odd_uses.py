"""Odd but real uses, each of which went wrong once."""

import copy
import enum
import functools
import pickle

import keras
import numpy as np
import pytest
from problems import flat, network, regression

import kopt

DATA = {"shuffle": False, "verbose": 0}


class Mode(enum.StrEnum):
    A, B = "a", "b"


def test_an_enumeration_survives_a_configuration():
    class Moded(kopt.Optimizer):
        mode: Mode = Mode.A

    assert Moded(mode="b").mode is Mode.B
    assert Moded.from_config(Moded(mode=Mode.B).get_config()).mode is Mode.B
    with pytest.raises(ValueError, match="one of 'a', 'b'"):
        Moded(mode="c")


def test_defaults_of_several_bases_are_those_of_the_class():
    class First(kopt.AdamW, abstract=True):
        beta_1 = 0.1

    class Second(kopt.AdamW, abstract=True):
        beta_2 = 0.2

    class Both(First, Second, abstract=True):
        pass

    assert (Both.fields["beta_1"].default, Both.fields["beta_2"].default) == (Both.beta_1, Both.beta_2) == (0.1, 0.2)


def test_averages_are_copied_pickled_and_forgotten():
    model, swa = network(kopt.Adam(0.05)), kopt.SWA()
    model.fit(regression(), epochs=3, callbacks=[swa], **DATA)
    with swa.weights():
        average = flat(model)
    loaded = pickle.loads(pickle.dumps(swa))
    loaded.set_model(model)
    for callback in (copy.deepcopy(swa), loaded):
        with callback.weights():
            np.testing.assert_array_equal(flat(model), average)
    swa.reset()
    assert swa.average() is None


def test_what_was_set_while_an_average_was_shown_stays():
    class Sets(keras.callbacks.Callback):
        def on_test_end(self, logs=None):
            self.model.set_weights([np.full(w.shape, 0.5) for w in self.model.get_weights()])

    model = network(kopt.Adam(0.05))
    model.fit(regression(), epochs=2, validation_data=regression(), callbacks=[Sets(), kopt.EMA(0.9)], **DATA)
    np.testing.assert_array_equal(flat(model), 0.5)


def test_wrapped_methods_of_a_model_are_called_and_kept():
    model, calls = network(kopt.Adam(0.05)), []
    evaluate = model.evaluate
    model.evaluate = lambda *args, **kwargs: calls.append(1) or evaluate(*args, **kwargs)
    model.predict = functools.partial(model.predict, verbose=0)
    mine = model.predict
    history = model.fit(regression(), epochs=3, validation_data=regression(), callbacks=[kopt.EMA(0.9)], **DATA)
    assert len(calls) == 3 and model.predict is mine
    assert history.history["val_loss"][-1] != model.evaluate(regression(), verbose=0)
