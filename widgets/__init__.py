"""Pictures and viewers: arrays, tables and affines in, figures out. Nothing here knows a model.

slices      CT slices as radiologists read them, with overlays and outlines
figures     losses and prevalences, and the one house style of all pictures
geometry    where a voxel lies in the patient        panels    one slice drawn
"""
