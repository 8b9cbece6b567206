"""Recommendation: ratings by matrix factorization, whose tables have a rule of their own.

The ratings are made, with noise of 0.5: no model can have a smaller error than that.
"""

import keras
import numpy as np

import kopt

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
users, items, width, noise = 400, 200, 4, 0.5
liking = rng.normal(size=(users, width)) @ rng.normal(size=(width, items)) / 2
user, item = rng.integers(0, users, 30_000), rng.integers(0, items, 30_000)
rating = 3.5 + liking[user, item] + noise * rng.normal(size=len(user))
train, test = slice(0, 27_000), slice(27_000, None)


def table(rows, name):
    """Returns an embedding whose vectors begin small."""
    return keras.layers.Embedding(rows, width, embeddings_initializer=keras.initializers.RandomNormal(0.3), name=name)


inputs = [keras.Input((), dtype="int32", name=name) for name in ("user", "item")]
vectors = [table(users, "user_table")(inputs[0]), table(items, "item_table")(inputs[1])]
outputs = keras.layers.Dense(1, bias_initializer=keras.initializers.Constant(3.5))(keras.layers.Multiply()(vectors))
model = keras.Model(inputs, outputs)

# Rows that a batch did not read stay as they are: a step costs what it reads, however large the tables are.
rule = kopt.Route([(r"_table/", kopt.LazyAdam(2e-2)), ("", kopt.AdamW(1e-2))])
model.compile(rule, "mse", metrics=[keras.metrics.RootMeanSquaredError(name="rmse")])
model.fit([user[train], item[train]], rating[train], batch_size=256, epochs=12, verbose=0)

_, rmse = model.evaluate([user[test], item[test]], rating[test], verbose=0)
mean = np.sqrt(np.mean((rating[test] - rating[train].mean()) ** 2))
print(f"RMSE on the test set: {rmse:.3f}; of the mean rating {mean:.3f}, the best possible {noise}")
scores = model.predict([np.full(items, 7), np.arange(items)], verbose=0)[:, 0]
best = np.argsort(-scores)[:5]
hits = np.isin(best, np.argsort(-liking[7])[:10]).sum()
print(f"for user 7: items {best.tolist()}, {hits} of which are among the ten that this user likes best")
