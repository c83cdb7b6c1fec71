"""The command line, `python -m fastvae train`: train a VAE on real data with `fastvae.elbo_terms`.

    data.py       read the digits or a file, check, standardize and split it
    tables.py     .csv files, with the positions of errors
    training.py   the training loop: step, epoch, evaluation, stopping, resuming
    storage.py    checkpoints and other files, written atomically
    streams.py    stdout and stderr that are closed, full, or not read
    pictures.py   plots of the results

Requires the extra ``[demo]``: matplotlib, tqdm, scikit-learn.
"""
