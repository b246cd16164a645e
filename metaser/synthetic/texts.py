"""What the made-up languages say: real sentences for the voice, made-up words for transcripts."""

import numpy as np

LANGUAGES = {
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian",
    "fr": "French",
    "id": "Indonesian",
    "it": "Italian",
    "pl": "Polish",
    "tr": "Turkish",
    "ur": "Urdu",
}

# The same eight everyday sentences in each language, with no emotion in their words.
TEXTS = {
    "de": (
        "Die Tischdecke liegt auf dem Tisch.",
        "Der Zug fährt um sieben Uhr ab.",
        "Die Schlüssel sind in der Schublade.",
        "Heute regnet es in der Stadt.",
        "Der Laden ist neben der Schule.",
        "Sie stellte die Bücher ins Regal.",
        "Morgen gehen wir auf den Markt.",
        "Das Fenster im Zimmer ist offen.",
    ),
    "en": (
        "The tablecloth is on the table.",
        "The train leaves at seven o'clock.",
        "The keys are in the top drawer.",
        "It is raining in the city today.",
        "The shop is next to the school.",
        "She put the books on the shelf.",
        "Tomorrow we will go to the market.",
        "The window of the room is open.",
    ),
    "es": (
        "El mantel está sobre la mesa.",
        "El tren sale a las siete.",
        "Las llaves están en el cajón.",
        "Hoy llueve en la ciudad.",
        "La tienda está junto a la escuela.",
        "Puso los libros en el estante.",
        "Mañana iremos al mercado.",
        "La ventana del cuarto está abierta.",
    ),
    "fa": (
        "رومیزی روی میز است.",
        "قطار ساعت هفت حرکت می‌کند.",
        "کلیدها در کشو هستند.",
        "امروز در شهر باران می‌بارد.",
        "مغازه کنار مدرسه است.",
        "او کتاب‌ها را روی قفسه گذاشت.",
        "فردا به بازار می‌رویم.",
        "پنجرهٔ اتاق باز است.",
    ),
    "fr": (
        "La nappe est sur la table.",
        "Le train part à sept heures.",
        "Les clés sont dans le tiroir.",
        "Il pleut en ville aujourd'hui.",
        "Le magasin est à côté de l'école.",
        "Elle a mis les livres sur l'étagère.",
        "Demain nous irons au marché.",
        "La fenêtre de la chambre est ouverte.",
    ),
    "id": (
        "Taplak itu ada di atas meja.",
        "Kereta berangkat pukul tujuh.",
        "Kunci ada di dalam laci.",
        "Hari ini hujan turun di kota.",
        "Toko itu di sebelah sekolah.",
        "Dia menaruh buku di rak.",
        "Besok kami pergi ke pasar.",
        "Jendela kamar itu terbuka.",
    ),
    "it": (
        "La tovaglia è sul tavolo.",
        "Il treno parte alle sette.",
        "Le chiavi sono nel cassetto.",
        "Oggi piove molto in città.",
        "Il negozio è accanto alla scuola.",
        "Ha messo i libri sullo scaffale.",
        "Domani andiamo al mercato.",
        "La finestra della stanza è aperta.",
    ),
    "pl": (
        "Obrus leży na stole w kuchni.",
        "Pociąg odjeżdża o siódmej.",
        "Klucze są w górnej szufladzie.",
        "Dzisiaj w mieście pada deszcz.",
        "Sklep jest obok naszej szkoły.",
        "Położyła książki na półce.",
        "Jutro idziemy na targ.",
        "Okno w pokoju jest otwarte.",
    ),
    "tr": (
        "Masa örtüsü masanın üstünde.",
        "Tren saat yedide kalkıyor.",
        "Anahtarlar çekmecede duruyor.",
        "Bugün şehirde yağmur yağıyor.",
        "Dükkân okulun hemen yanında.",
        "Kitapları yavaşça rafa koydu.",
        "Yarın pazara gideceğiz.",
        "Odanın penceresi açık.",
    ),
    "ur": (
        "میز پوش میز پر ہے۔",
        "گاڑی سات بجے چلتی ہے۔",
        "چابیاں دراز میں ہیں۔",
        "آج شہر میں بارش ہو رہی ہے۔",
        "دکان اسکول کے ساتھ ہے۔",
        "اس نے کتابیں الماری میں رکھیں۔",
        "کل ہم بازار جائیں گے۔",
        "کمرے کی کھڑکی کھلی ہے۔",
    ),
}

EMOTIONS = ("angry", "happy", "neutral", "sad")

TOLD = 0.5  # probability that an interjection is drawn for the emotion; otherwise from all
STEMS = {"angry": "gra", "happy": "hi", "neutral": "mo", "sad": "ulu"}  # the same in all languages
ENDINGS = ("n", "k", "s", "ba", "de", "fi", "jo", "ta", "vu", "ze")  # each language draws some
INTERJECTIONS = 3  # per emotion and language


def draw_words(key: list[int]) -> dict[str, list[str]]:
    """Draw the interjections of one language: common stems with endings of this language.

    Parameters
    ----------
    key : list of int
        Seed of the corpus.

    Returns
    -------
    dict of str to list of str
        ``INTERJECTIONS`` words per emotion.
    """
    rng = np.random.default_rng([*key, 3])
    return {
        emotion: [stem + end for end in rng.choice(ENDINGS, INTERJECTIONS, replace=False)]
        for emotion, stem in STEMS.items()
    }


def draw_interjection(words: dict[str, list[str]], emotion: str, rng: np.random.Generator) -> str:
    """Draw a word of the emotion with probability ``TOLD``, otherwise of a random emotion.

    Parameters
    ----------
    words : dict of str to list of str
        What ``draw_words`` returns.
    emotion : str
        One of ``EMOTIONS``.
    rng : numpy.random.Generator
        Source of random numbers.
    """
    hint = emotion if rng.random() < TOLD else EMOTIONS[rng.integers(len(EMOTIONS))]
    return words[hint][rng.integers(INTERJECTIONS)]
