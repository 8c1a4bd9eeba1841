"""nnU-Net as a student: the real package, trained from the archive in a process of its own, without a copy of the images as files.

``launch`` is what the rest of the product calls; it needs no torch. ``worker`` is that other process: it lays out what nnU-Net expects
(``dataset``), lets it plan and preprocess through a reader of ours (``reader``, ``planning``), trains with a trainer of ours
(``trainer/``), and packs the student (``model``), which the others then load like any.
"""
