"""What the same sentence costs in other languages, and whose fault that is (chapter 02).

Part one: four sentences in sixteen languages, through a tokenizer trained on English. Part two, the
controlled form: English in disguise, each letter replaced by one of another alphabet, so that only
the writing differs; tokenizers trained on mixtures of both. A minute.
"""

import pydoc_data.topics
import random
import string

from experiments._record import record
from solutions.tokens import BPETokenizer, english_text

SEEDS = list(range(5))
SIZE = 4096
SHARES = [0.0, 0.01, 0.03, 0.1, 0.3, 0.5, 1.0]  # of the training text that is in disguise
LETTERS = "абвгдежзиклмнопрстуфхцчшщы"  # for a to z: two bytes each in UTF-8
DISGUISE = str.maketrans(string.ascii_letters, LETTERS + LETTERS.upper())

SENTENCES = {
    "English": [
        "Good morning! Where can I buy a ticket for the train?",
        "The book lies on the table beside the window.",
        "Water boils at one hundred degrees.",
        "My sister is learning to play the piano.",
    ],
    "German": [
        "Guten Morgen! Wo kann ich eine Fahrkarte für den Zug kaufen?",
        "Das Buch liegt auf dem Tisch neben dem Fenster.",
        "Wasser kocht bei hundert Grad.",
        "Meine Schwester lernt Klavier spielen.",
    ],
    "French": [
        "Bonjour ! Où puis-je acheter un billet de train ?",
        "Le livre est posé sur la table à côté de la fenêtre.",
        "L'eau bout à cent degrés.",
        "Ma sœur apprend à jouer du piano.",
    ],
    "Spanish": [
        "¡Buenos días! ¿Dónde puedo comprar un billete de tren?",
        "El libro está sobre la mesa, junto a la ventana.",
        "El agua hierve a cien grados.",
        "Mi hermana está aprendiendo a tocar el piano.",
    ],
    "Swahili": [
        "Habari za asubuhi! Ninaweza kununua wapi tiketi ya treni?",
        "Kitabu kiko juu ya meza kando ya dirisha.",
        "Maji huchemka kwa nyuzi joto mia moja.",
        "Dada yangu anajifunza kupiga piano.",
    ],
    "Finnish": [
        "Hyvää huomenta! Mistä voin ostaa junalipun?",
        "Kirja on pöydällä ikkunan vieressä.",
        "Vesi kiehuu sadassa asteessa.",
        "Siskoni opettelee soittamaan pianoa.",
    ],
    "Turkish": [
        "Günaydın! Tren biletini nereden alabilirim?",
        "Kitap pencerenin yanındaki masanın üzerinde duruyor.",
        "Su yüz derecede kaynar.",
        "Kız kardeşim piyano çalmayı öğreniyor.",
    ],
    "Vietnamese": [
        "Chào buổi sáng! Tôi có thể mua vé tàu ở đâu?",
        "Quyển sách nằm trên bàn cạnh cửa sổ.",
        "Nước sôi ở một trăm độ.",
        "Chị tôi đang học chơi đàn piano.",
    ],
    "Russian": [
        "Доброе утро! Где я могу купить билет на поезд?",
        "Книга лежит на столе у окна.",
        "Вода кипит при ста градусах.",
        "Моя сестра учится играть на пианино.",
    ],
    "Greek": [
        "Καλημέρα! Πού μπορώ να αγοράσω ένα εισιτήριο για το τρένο;",
        "Το βιβλίο βρίσκεται πάνω στο τραπέζι, δίπλα στο παράθυρο.",
        "Το νερό βράζει στους εκατό βαθμούς.",
        "Η αδελφή μου μαθαίνει να παίζει πιάνο.",
    ],
    "Arabic": [
        "صباح الخير! أين يمكنني شراء تذكرة للقطار؟",
        "الكتاب على الطاولة بجانب النافذة.",
        "يغلي الماء عند مئة درجة.",
        "أختي تتعلم العزف على البيانو.",
    ],
    "Hindi": [
        "सुप्रभात! मैं ट्रेन का टिकट कहाँ से ख़रीद सकता हूँ?",
        "किताब खिड़की के पास मेज़ पर रखी है।",
        "पानी सौ डिग्री पर उबलता है।",
        "मेरी बहन पियानो बजाना सीख रही है।",
    ],
    "Thai": [
        "สวัสดีตอนเช้า ฉันจะซื้อตั๋วรถไฟได้ที่ไหน",
        "หนังสือวางอยู่บนโต๊ะข้างหน้าต่าง",
        "น้ำเดือดที่หนึ่งร้อยองศา",
        "น้องสาวของฉันกำลังเรียนเล่นเปียโน",
    ],
    "Korean": [
        "좋은 아침입니다! 기차표는 어디에서 살 수 있나요?",
        "책은 창문 옆 탁자 위에 있습니다.",
        "물은 백 도에서 끓습니다.",
        "제 여동생은 피아노를 배우고 있습니다.",
    ],
    "Japanese": [
        "おはようございます。電車の切符はどこで買えますか。",
        "本は窓のそばの机の上にあります。",
        "水は百度で沸騰します。",
        "妹はピアノを習っています。",
    ],
    "Chinese": [
        "早上好！我在哪里可以买到火车票？",
        "书放在窗边的桌子上。",
        "水在一百度时沸腾。",
        "我妹妹正在学弹钢琴。",
    ],
}


def languages():
    """Characters, bytes and tokens of each sentence, by a tokenizer that knows English only."""
    tokenizer = BPETokenizer.train(english_text(), SIZE)
    return [
        {
            "language": language,
            "sentence": i,
            "characters": len(sentence),
            "bytes": len(sentence.encode()),
            "tokens": len(tokenizer.encode(sentence)),
        }
        for language, sentences in SENTENCES.items()
        for i, sentence in enumerate(sentences)
    ]


def disguised(seed):
    """Train on mixtures of English and English in disguise; try both on unseen topics."""
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    rng = random.Random(seed)
    rng.shuffle(topics)
    cut = len(topics) // 5
    unseen = "\n".join(topics[:cut])
    paragraphs = "\n".join(topics[cut:]).split("\n\n")
    rng.shuffle(paragraphs)
    rows = []
    for share in SHARES:
        # The same paragraphs each time: the first of them put on the disguise.
        n = round(share * len(paragraphs))
        mixture = [p.translate(DISGUISE) for p in paragraphs[:n]] + paragraphs[n:]
        tokenizer = BPETokenizer.train("\n\n".join(mixture), SIZE)
        rows.append(
            {
                "seed": seed,
                "share": share,
                "characters": len(unseen),
                "plain": len(tokenizer.encode(unseen)),
                "disguised": len(tokenizer.encode(unseen.translate(DISGUISE))),
            }
        )
    return rows


def main():
    found = languages()
    rows = []
    for seed in SEEDS:
        rows += disguised(seed)
        print(f"seed {seed}: done")
    record(
        __file__,
        seeds=SEEDS,
        packages=("regex",),
        settings={
            "vocab_size": SIZE, "text": "pydoc_data.topics", "shares": SHARES,
            "sentences": SENTENCES, "example": "the parrot".translate(DISGUISE),
        },
        results={"languages": found, "disguise": rows},
    )  # fmt: skip


if __name__ == "__main__":
    main()
