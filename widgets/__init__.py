"""Pictures and viewers: arrays, tables and affines in, figures out. Nothing here knows a model.

slices      CT slices as radiologists read them, with overlays and outlines
figures     losses and prevalences, and the one house style of all pictures
predictions what a fine-tuned model says beside what is true
geometry    where a voxel lies in the patient        panels    one slice drawn

cases       cases against methods (Fig. 7)          scores   radar (Fig. 8), tables as heat maps, scaling curves
reports     a generated report against its reference, words marked

attention   the explorer of maps: linked planes, sentences, runs side by side
errors      the viewer of segmentations: what is wrong, what is missing, and where; verdict   how that is counted
volume      planes and 3-D in one canvas, maps as one overlay of a frame a sentence (NiiVue)
progress    loss curves that grow while a run trains
live, panes, frame, hands   what these share        layers, viewer   the same in napari, or why not
"""
