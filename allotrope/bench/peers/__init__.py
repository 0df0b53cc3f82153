"""What users would pick instead: one self-contained script a peer, run by that peer's own Python.

`worker.py` is the process; it loads one of the scripts beside it by path and speaks JSON lines. These files import
nothing of Allotrope's (but `ours.py`, the engine itself under the same protocol) and nothing heavy before they are
asked to do something, since an environment of theirs holds neither. A script has

    convert(source, target, form)    a Hugging Face folder into what the peer reads, in one of its formats
    versions()                       of the libraries that do the work
    open_model(folder, asked)        loads it and gives a Model

and a Model `generate(prompts, count, beams)`, which returns exactly `count` greedy tokens for each prompt whatever the
model says, and `actual`, the weights' and activations' formats: as the peer itself tells them where it can be asked
(CTranslate2), else as it was asked for them and computes by its documentation. It may have `facts` to be shown beside
its figures, and `device_peak`, a GPU's memory.
"""
