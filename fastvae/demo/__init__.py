"""The main job, `python -m fastvae train`: a VAE trained on real data with `fastvae.elbo_terms`, from file to picture.

    data.py       read the digits or a file, check, standardize and split it
    tables.py     .csv files, and where in them an error is
    training.py   the loop: one step, one epoch, evaluate, stop, resume
    storage.py    checkpoints and other files, written whole or not at all
    streams.py    stdout and stderr, where they are closed, full or not read
    pictures.py   what was learned, drawn

Needs the extra ``[demo]``: matplotlib, tqdm, scikit-learn.
"""
