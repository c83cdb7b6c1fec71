"""A mixture for each group of a data frame, in one call, with groups of different sizes.

The groups are the ten digits, the rows their images in three principal components. Smaller groups are padded with rows
of weight 0, which are ignored: each group gets the same fit as on its own.
"""

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import fastvae
from fastvae import gmm

COLUMNS = ["first", "second", "third"]


def padded(frame: pd.DataFrame, by: str, columns: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows ``[groups, rows of the largest group, columns]`` in the order of the group keys, and weights, 1 or 0."""
    groups = frame.groupby(by)
    group, row = groups.ngroup(), groups.cumcount()
    X = np.zeros((groups.ngroups, row.max() + 1, len(columns)))
    weight = np.zeros(X.shape[:2])
    X[group, row], weight[group, row] = frame[columns], 1.0
    return X, weight


def main() -> tuple[pd.DataFrame, float]:
    """Return the table of all fits, and the largest difference to the means of groups fitted separately."""
    images, digit = load_digits(return_X_y=True)
    components = PCA(3, random_state=0).fit_transform(images)
    frame = pd.DataFrame(components, columns=COLUMNS).assign(digit=digit)
    X, weight = padded(frame, "digit", COLUMNS)
    start = gmm.fit(X, 2, sample_weight=weight, seed=0, max_iter=0).mixture  # k-means, group by group
    fit = gmm.fit(X, 2, sample_weight=weight, init=start, max_iter=500)
    table = pd.DataFrame({"rows": weight.sum(1).astype(int), "larger_weight": fit.mixture.weights.max(1)})
    table["log_likelihood"], table["bic"] = fit.log_likelihood, gmm.bic(X, fit.mixture, sample_weight=weight)
    table["n_iter"] = fit.n_iter
    table["status"] = [fastvae.Status(int(status)).name for status in fit.status]
    print(table.rename_axis("digit").round(2).to_string())
    difference = 0.0
    for i, rows in frame.groupby("digit")[COLUMNS]:
        init = gmm.Mixture(start.weights[i], start.means[i], start.covariances[i], "full")
        separate = gmm.fit(rows.to_numpy(), 2, init=init, max_iter=500)
        difference = max(difference, float(np.abs(separate.mixture.means - fit.mixture.means[i]).max()))
    print(f"means of groups fitted separately, without padding, differ by at most {difference:.1e}")
    return table, difference


if __name__ == "__main__":
    main()
