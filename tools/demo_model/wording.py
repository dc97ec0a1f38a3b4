"""Phrases of the long descriptions, the prompts, and extra text for the tokenizer.

Knows nothing about scenes. Blanks: {a}, {b} "a small red car"; {A}, {B} the same with a capital; {the_a}, {the_b}
"the car"; {The_a}, {The_b}; {color_a}, {size_a}, … "red", "small"; {where} "to the left of" (first relative to
second), {back} the opposite; {place} "in a green meadow". Kinds appear only in blanks, and no color precedes a kind:
`lorgnette.demo.captions.Facts` reads the facts back from the text.
"""

OPENERS_WITH_BOTH = (
    "The image depicts {a} {where} {b}.",
    "The image shows {a} {where} {b}.",
    "The picture features {a} placed {where} {b}.",
    "In this image, there is {a} {where} {b}.",
    "The image depicts {a} positioned {where} {b}, {place}.",
    "The illustration shows {a} {where} {b}, {place}.",
)
OPENERS_WITH_PLACE = (
    "The image depicts {scene} {place}.",
    "The image depicts {scene} that takes place {place}.",
    "The image shows {scene} {place}.",
    "This picture presents {scene} {place}.",
    "The image is a digital illustration of {scene} {place}.",
)
SCENES = (
    "a simple scene",
    "a cheerful scene",
    "a playful cartoon scene",
    "a clean, minimalist scene",
    "a calm and friendly scene",
)
INTRODUCTIONS = (
    "There are two objects in the scene: {a} and {b}.",
    "Two objects can be seen: {a} and {b}.",
    "It features two main objects, {a} and {b}.",
    "The main subjects are {a} and {b}.",
    "The first object is {a}, and the second object is {b}.",
    "{A} can be seen together with {b}.",
)
INTRODUCTIONS_IN_PARTS = (
    "There are two objects, a {kind_a} and a {kind_b}. The {kind_a} is {size_a} and {color_a}, "
    "while the {kind_b} is {size_b} and {color_b}.",
    "It contains a {kind_a} and a {kind_b}. The {kind_a} is {color_a} and {size_a}, "
    "and the {kind_b} is {color_b} and {size_b}.",
)
RELATIONS = (
    "{The_a} is {where} {the_b}.",
    "{The_a} is located {where} {the_b}.",
    "{The_a} is positioned {where} {the_b}, with a clear gap between them.",
    "{The_b} is {back} {the_a}.",
    "{The_b} can be found {back} {the_a}.",
    "In the composition, {the_a} appears {where} {the_b}.",
)
PLACINGS = (
    "The scene is set {place}.",
    "Everything is set {place}.",
    "The two objects are placed {place}.",
    "The setting is easy to recognize, as the objects appear {place}.",
)
PLACES = {
    "meadow": ("in a green meadow", "on a grassy meadow under a bright sky", "in a meadow with soft clouds above it"),
    "beach": ("on a sandy beach", "at the beach, with calm water behind it", "on a beach under a clear sky"),
    "snow": ("in a snowy landscape", "among snowy hills", "in a snowy field with falling flakes"),
    "night sky": ("in front of a dark night sky", "against the night sky", "under a night sky full of tiny lights"),
    "gray wall": ("in front of a plain gray wall", "against a gray background", "on a simple gray backdrop"),
    "lake": ("on the water of a lake", "on a calm lake", "on a lake with gentle waves"),
}
"""Each phrase contains the background's keyword, and no keyword of another background."""

KEYWORDS = {
    "meadow": "meadow",
    "beach": "beach",
    "snow": "snowy",
    "night sky": "night",
    "gray wall": "gray",
    "lake": "lake",
}
DETAILS = {
    "meadow": ("Blades of grass cover the ground.", "A few clouds drift across the sky.", "The weather looks sunny."),
    "beach": ("The sand looks warm and soft.", "Gentle waves roll toward the shore.", "It looks like a sunny day."),
    "snow": ("The ground is covered in a thick layer of snow.", "The air looks cold and crisp.", "Flakes are falling."),
    "night sky": ("Tiny points of light are scattered around.", "The mood is quiet and mysterious.", "It is dark."),
    "gray wall": ("The backdrop is completely plain.", "Nothing distracts from the objects.", "The light is even."),
    "lake": ("Small ripples spread over the surface.", "The water looks cool and clear.", "The surface is calm."),
}
REMARKS = (
    "The overall style is simple and playful, with bold dark outlines and flat colors.",
    "Each object has a thick outline, which makes it stand out clearly from the background.",
    "The composition is clean and uncluttered, which draws the attention to the two objects.",
    "There are no people and no written words in the picture.",
    "The overall mood of the picture is cheerful and lighthearted.",
    "The drawing has a friendly look that would suit a book for children.",
    "The bright colors and the simple forms give the image a charming feel.",
    "Both objects are drawn like stickers, with a thin pale border around them.",
    "The image has a square format and looks like a digital drawing.",
    "Overall, the picture is easy to understand at a glance.",
)
NUM_WORDS = (45, 80)

PROMPTS = (
    "COCO Yes:",
    "Describe this picture.",
    "Describe this image.",
    "Describe the image in detail.",
    "What is in the image?",
    "What do you see?",
    "What can you see in this picture?",
    "Please describe what is shown here.",
    "Caption:",
    "Write a caption for this picture.",
    "Tell me about this image.",
    "Can you explain what the picture shows?",
)
"""What people ask. The answer is always a long description: the model never learns to be brief."""

GENERAL_ENGLISH = (
    "You are a helpful assistant.",
    "system user assistant",
    "The quick brown fox jumps over the lazy dog while it rains in the town, and the people go home for dinner.",
    "A group of people sitting around a table with plates of food, cups of coffee and a birthday cake.",
    "A man riding a wave on top of a surfboard. A woman holding an umbrella on a street with many cars and buses.",
    "Two dogs are playing with a ball on the grass next to a wooden bench near some trees in a park.",
    "A kitchen with a stove, a white refrigerator, a sink and a window. A cat sleeping on a bed with a laptop.",
    "Write one short sentence about the picture. Answer the question. How many are there? Which one is larger?",
    "What color is it? Where is it? Who is there? When was this taken? Why do you think so? Yes or no?",
    "Please give me a short caption, list all the things, count them, compare them and name their colors.",
    "Convert the formula in this picture to text. Translate this sign into French. Read the words aloud.",
    "0 1 2 3 4 5 6 7 8 9 10 25 100 ( ) [ ] { } + - = / < > % & # @ * : ; ! ? ' \"",
)
"""Extra text for the tokenizer, and words for random prompts."""
