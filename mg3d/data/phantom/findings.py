"""The renderer of each of the 18 abnormalities, by label."""

from mg3d.data.phantom import devices, findings_airway, findings_chest, findings_lung

SHAPE = {  # these make room for themselves before the lung is painted: (scene, finding, rng) -> [(box, field), ...]
    "Pericardial effusion": findings_chest.pericardial_room,
    "Hiatal hernia": findings_chest.hernia_room,
    "Lymphadenopathy": findings_chest.node_room,
    "Pleural effusion": findings_chest.pleural_room,
}

PAINT = {  # (scene, finding, rng, shapes) -> (box, share of each voxel of the box that the finding fills)
    "Medical material": devices.device,
    "Arterial wall calcification": findings_chest.arterial_plates,
    "Cardiomegaly": findings_chest.cardiomegaly,
    "Pericardial effusion": findings_chest.pericardial_effusion,
    "Coronary artery wall calcification": findings_chest.coronary_specks,
    "Hiatal hernia": findings_chest.hernia,
    "Lymphadenopathy": findings_chest.nodes,
    "Emphysema": findings_airway.emphysema,
    "Atelectasis": findings_lung.atelectasis,
    "Lung nodule": findings_lung.nodule,
    "Lung opacity": findings_lung.opacity,
    "Pulmonary fibrotic sequela": findings_lung.fibrosis,
    "Pleural effusion": findings_chest.pleural_effusion,
    "Mosaic attenuation pattern": findings_airway.mosaic,
    "Peribronchial thickening": findings_airway.peribronchial,
    "Consolidation": findings_lung.consolidation,
    "Bronchiectasis": findings_airway.bronchiectasis,
    "Interlobular septal thickening": findings_airway.septa,
}
