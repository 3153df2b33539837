"""The words, sentences and facts that the tasks in `prompts.py` draw from.

Common words, most of them one token in most tokenizers; the generators keep those that are.
"""

NAMES = """Mary John Tom James Dan Martin Anna Paul Mark Kate Sarah David Laura Peter Emma Michael
Alice Robert Jane George Lucy Henry Susan William Lisa Kevin Rachel Simon Amy Andrew Rose Daniel
Maria Adam Julia Eric Helen Alex Ruth Frank Jack Karen Steve Linda Brian Grace Chris Clare Matt
Diana Sam Nancy Ben Carol Tim Joan Scott Ellen Joe Elizabeth Charles Jennifer Thomas"""
PLACES = "store school park garden house hospital office station restaurant market library"
OBJECTS = "drink book ring bag box gift letter map phone ticket basket key hat card coin cup"
EVENTS = """war trial journey project strike campaign conflict festival expedition study plague
rebellion experiment marriage dispute mission voyage debate crisis reign struggle program"""
WORDS = """apple river window table chair garden bridge castle doctor engine forest guitar hammer
island jacket kitchen ladder mirror needle orange pencil rabbit saddle temple valley winter yellow
silver copper market mountain planet bottle camera candle pepper cotton desert dragon finger flower
glass horse iron paper piano queen salt shadow shoulder stone sugar summer tiger tower train water
wheel wolf circle button farmer artist lawyer ocean"""
COLORS = "red blue green yellow black white brown pink purple orange gray"
SEQUENCES = {
    "digits": "1 2 3 4 5 6 7 8 9",
    "numbers": "one two three four five six seven eight nine ten eleven twelve",
    "months": """January February March April May June July August September October November
    December""",
}
ARGUMENTS = """file run client project option create error name value path size line text user node
key index count data table color width height model target source parent child group level mode
rate start stop step state type unit version weight order page list item image host port role
scale shape signal speed title token test time task style"""

IOI_TEMPLATES = {
    "together": "When {first} and {second} went to the {place} together, "
    "{giver} gave a {object} to",
    "went": "When {first} and {second} went to the {place}, {giver} gave a {object} to",
    "ate": "After {first} and {second} ate at the {place}, {giver} passed the {object} to",
    "working": "While {first} and {second} were working at the {place}, {giver} gave a {object} to",
    "met": "Yesterday {first} and {second} met at the {place}, and {giver} handed a {object} to",
    "saw": "Both {first} and {second} saw a {object} at the {place}, and {giver} gave it to",
    "argued": "Then {first} and {second} argued at the {place}, and afterwards {giver} said to",
}

CAPITALS = """France Paris; Italy Rome; Spain Madrid; Germany Berlin; Russia Moscow; Japan Tokyo;
China Beijing; Egypt Cairo; Greece Athens; Ireland Dublin; Poland Warsaw; Austria Vienna;
England London; Portugal Lisbon; Cuba Havana; Iran Tehran; Iraq Baghdad; Turkey Ankara;
Sweden Stockholm; Norway Oslo; Denmark Copenhagen; Finland Helsinki; Hungary Budapest;
Kenya Nairobi; Peru Lima; Chile Santiago; Canada Ottawa; Thailand Bangkok; Syria Damascus;
Belgium Brussels; Ukraine Kiev; Indonesia Jakarta"""

AGREEMENT = {
    "simple": "The {}",
    "preposition": "The {} near the {}",
    "relative": "The {} that the {} saw",
}
NOUNS = """man/men woman/women child/children boy/boys girl/girls key/keys car/cars dog/dogs
doctor/doctors teacher/teachers student/students farmer/farmers artist/artists lawyer/lawyers
writer/writers driver/drivers player/players parent/parents friend/friends book/books table/tables
letter/letters house/houses tree/trees bird/birds ship/ships picture/pictures box/boxes"""

PRONOUNS = {"woman": ("She", "Her"), "man": ("He", "His")}
CUES = {
    "nurse": "looks after patients on a hospital ward; gives injections and checks blood pressure; "
    "changes bandages and cleans wounds; works night shifts in intensive care; "
    "helps the surgeon in the operating room; hands out medicine to the sick; "
    "takes temperatures at the clinic; cares for newborn babies in the maternity unit; "
    "visits elderly patients at home; keeps medical records for the ward; "
    "comforts families in the emergency room; prepares patients for surgery; "
    "watches the heart monitors at night; draws blood for the laboratory; "
    "trains first aid volunteers at the hospital; assists the doctors on their rounds; "
    "treats burns and broken bones; feeds those who are too weak to eat; "
    "runs the vaccination clinic; checks on patients after their operations; "
    "sets up drips and oxygen masks; works for a hospice and eases pain; "
    "washes and dresses the bedridden; calls the doctor when a patient gets worse",
    "professor": "teaches courses in physics at the university; publishes papers on medieval "
    "history; supervises doctoral students in linguistics; gives lectures on economic theory; "
    "leads a research group in organic chemistry; reviews articles for a journal of philosophy; "
    "wrote a textbook on linear algebra; holds the chair of comparative literature; "
    "grades essays and sits on thesis committees; applies for research grants in biology; "
    "speaks at conferences on artificial intelligence; directs the institute of archaeology; "
    "edits a journal of political science; runs seminars on ancient Greek drama; "
    "studies the behaviour of galaxies with graduate students; advises students on their "
    "dissertations; heads the department of mathematics; received tenure for work on number "
    "theory; lectures first-year students in statistics; organises a workshop on climate models; "
    "translated a treatise on logic; examines candidates for the doctorate; "
    "spent a sabbatical year writing a monograph; proved a theorem about prime numbers",
}
NEUTRAL = """lives in a small town near the coast; grew up in Ohio; moved to the city ten years ago;
has two brothers; enjoys cooking; plays the violin; likes to walk in the mountains; keeps a garden;
rides a bicycle every day; speaks Spanish and Italian; collects old maps; swims every morning"""
