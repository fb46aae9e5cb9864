"""Reports that the tests of text share: sentences that recur, one of a single word, one with a decimal."""

REPORTS = [
    "No pleural effusion. A nodule of 9.3 mm is seen in the right upper lobe. Emphysema in both lungs.",
    "The heart is enlarged. No pleural effusion.",
    "Nodule.",
    "Consolidation in the left lower lobe, with air bronchogram. The liver is normal. No pleural effusion.",
    "Bilateral hilar lymph nodes are enlarged. The heart is enlarged. Calcification of the aorta and the trachea.",
]
