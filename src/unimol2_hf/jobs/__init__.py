"""Work on whole files, resumable at any moment: embed, predict, build conformers, count what a library holds."""
