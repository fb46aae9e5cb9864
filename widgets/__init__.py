"""Pictures and viewers: arrays, tables and affines in, figures out. Nothing here knows a model.

slices      CT slices as radiologists read them, with overlays and outlines
figures     losses and prevalences, and the one house style of all pictures
predictions what a fine-tuned model says beside what is true
geometry    where a voxel lies in the patient        panels    one slice drawn

attention   the explorer of maps: linked planes, sentences, runs side by side
errors      the viewer of segmentations: what is wrong, what is missing, and where
live, panes, frame   what these two share           layers, viewer   the same in napari, or why not
"""
