"""The modes of a pass over the rows: covariance families, and what each step of a fit computes.

responsibilities   POSTERIOR of a mixture, GIVEN by the user, 1 for the NEAREST center, RANDOM
statistics         NOTHING but the log-likelihood, LINEAR sums, PRODUCTS for the family, SQUARES of features
then               LEAVE the sums, MERGE them, compute PARAMETERS, or CENTERS of k-means
"""

FULL, TIED, DIAG, SPHERICAL, MEANS_ALONE = range(5)  # the last has no covariance
POSTERIOR, GIVEN, NEAREST, RANDOM = range(4)
NOTHING, LINEAR, PRODUCTS, SQUARES = range(4)
LEAVE, MERGE, PARAMETERS, CENTERS = range(4)
