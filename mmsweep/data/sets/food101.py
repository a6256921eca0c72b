"""UPMC Food-101: a photograph of a dish and the title of the page it stood on. Declared; its reader comes later.

Counts: Lee et al.'s split lists (CVPR 2023), 67,988 for training (61,142 + 6,846 for validation) and 22,716 for test,
the numbers of CMPT's paper (research/methods.md §2.1, B18). The classes are ETHZ Food-101's, in alphabetical order.
"""

from __future__ import annotations

from mmsweep.components import register
from mmsweep.data.dataset import DatasetBuilder
from mmsweep.data.options import CarvedOptions
from mmsweep.tasks.task import Target

_NAMES = """
apple_pie baby_back_ribs baklava beef_carpaccio beef_tartare beet_salad beignets bibimbap bread_pudding
breakfast_burrito bruschetta caesar_salad cannoli caprese_salad carrot_cake ceviche cheese_plate cheesecake
chicken_curry chicken_quesadilla chicken_wings chocolate_cake chocolate_mousse churros clam_chowder
club_sandwich crab_cakes creme_brulee croque_madame cup_cakes deviled_eggs donuts dumplings edamame
eggs_benedict escargots falafel filet_mignon fish_and_chips foie_gras french_fries french_onion_soup
french_toast fried_calamari fried_rice frozen_yogurt garlic_bread gnocchi greek_salad grilled_cheese_sandwich
grilled_salmon guacamole gyoza hamburger hot_and_sour_soup hot_dog huevos_rancheros hummus ice_cream lasagna
lobster_bisque lobster_roll_sandwich macaroni_and_cheese macarons miso_soup mussels nachos omelette
onion_rings oysters pad_thai paella pancakes panna_cotta peking_duck pho pizza pork_chop poutine prime_rib
pulled_pork_sandwich ramen ravioli red_velvet_cake risotto samosa sashimi scallops seaweed_salad
shrimp_and_grits spaghetti_bolognese spaghetti_carbonara spring_rolls steak strawberry_shortcake sushi tacos
takoyaki tiramisu tuna_tartare waffles
"""
CLASSES = tuple(_NAMES.split())


@register("food101")
class Food101(DatasetBuilder):
    Options = CarvedOptions
    name = "food101"
    title = "UPMC Food-101: photographs of dishes with page titles"
    modalities = {"image": "image", "text": "text"}
    target = Target("single_label", CLASSES)
    rows = {"train": 61_142, "val": 6_846, "test": 22_716}
    get = "the original server is gone; a copy is on Kaggle as gianmarco96/upmcfood101; Lee et al.'s split.json with it"
    layout = "images/{train,test}/<class>/<class>_<number>.jpg, texts/{train,test}_titles.csv (file, title, class)"
