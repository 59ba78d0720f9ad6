"""The word lists of the partner "wordle": common English words of five letters."""

from __future__ import annotations

_SMALL = """
about after agent alarm alert allow alone amber anger angry apple arena arise arrow atlas award
badge badly basic batch beard being below berry blade blast blend bloom boast bonus bound brake
bread breed brief bring brown build cabin camel canal carry catch chair charm cheap check cheer
chief chill claim clean clerk cliff close cloud coast color comet could court craft crash crazy
creek crowd crush daily dance delay doubt dozen drama dress drink drive early eight empty enter
error event exact faint false fence fever fight first fleet flock flour fluid force found fresh
fruit ghost glass glory grade grand grass green greet guard guest happy heart hedge honey hotel
human ideal index inner jewel joker knock label laser laugh learn light linen logic lower lunch
major marry mayor merry metal minor money moral mouse movie nerve night north nurse often onion
opera organ outer panel party pause peace photo piece pizza plain plane point pouch price prime
proof proud queen quiet radio ranch reach ready reply right river robot round royal rural scale
scene scout seven shake shark sheep shell shirt shore shout skirt slice small smell smile snake
solve space speak spice spike sport stamp start steel stick storm stove sunny sweet table taste
tenth thing third tiger toast tooth torch track trail trial trick truck truth twins union urban
valid vapor visit vocal watch whale wheat whole woman wrist yacht zebra
"""
_MORE = """
above again agree album alike along angel angle apart apron armor aside avoid aware baker basis
beach begin belly birth blame blaze bless board booth brain brave break bride broad brush bunch
cable candy carve cause chalk chart cheek chest child civil class click climb cloth clown cobra
couch count crack crane cream crisp crown curve dairy diary dough drain dream drill eager earth
elbow enjoy entry every fable faith feast field final flame float flood focus forty frame frost
funny globe glove grain grape great group guess habit harsh hello honor house humor image ivory
joint juice known labor layer level limit local loose magic maple match medal meter model month
mount mouth never noble novel ocean olive order other paint paper patch pearl piano pilot place
plate polar press pride prize pulse quick quite raise rapid relax ridge rival robin rough ruler
salad scarf scent shade share sharp shelf shine short sight sleep slide smart snack solid south
spark spend spoon stair stand steam stone story straw super swift teach thick think thumb title
topic touch trade train tribe trust twice under upper value vault vital voice water where widow
worth write youth
"""

WORDS: dict[str, tuple[str, ...]] = {
    "small": tuple(_SMALL.split()),
    "large": tuple(sorted([*_SMALL.split(), *_MORE.split()])),
}
"""Name -> the words that can be guessed and be the secret, sorted: 236 and 431."""
