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

FACTS = {
    "capital": (
        "The capital of {} is",
        """France Paris; Italy Rome; Spain Madrid; Germany Berlin; Russia Moscow; Japan Tokyo;
        China Beijing; Egypt Cairo; Greece Athens; Ireland Dublin; Poland Warsaw; Austria Vienna;
        England London; Portugal Lisbon; Cuba Havana; Iran Tehran; Iraq Baghdad; Turkey Ankara;
        Sweden Stockholm; Norway Oslo; Denmark Copenhagen; Finland Helsinki; Hungary Budapest;
        Kenya Nairobi; Peru Lima; Chile Santiago; Canada Ottawa; Thailand Bangkok; Syria Damascus;
        Belgium Brussels; Ukraine Kiev; Indonesia Jakarta""",
    ),
    "language": (
        "The main language spoken in {} is",
        """France French; Italy Italian; Spain Spanish; Germany German; Russia Russian;
        Japan Japanese; China Chinese; Egypt Arabic; Greece Greek; Ireland English; Poland Polish;
        Austria German; England English; Portugal Portuguese; Cuba Spanish; Iraq Arabic;
        Turkey Turkish; Sweden Swedish; Norway Norwegian; Denmark Danish; Finland Finnish;
        Hungary Hungarian; Peru Spanish; Chile Spanish; Brazil Portuguese; Mexico Spanish;
        Thailand Thai; Syria Arabic; Korea Korean; Australia English; Israel Hebrew""",
    ),
}
