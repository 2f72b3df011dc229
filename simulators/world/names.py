"""Words of the world's catalogue: categories, brands, adjectives and nouns, Korean and English as in a Korean shop."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BRANDS", "CATEGORIES", "MODIFIERS", "CategoryWords"]


@dataclass(frozen=True, slots=True)
class CategoryWords:
    """A category: its name, its share of the catalogue, the median price (KRW), and nouns for titles."""

    name: str
    share: float
    price: float
    nouns: tuple[str, ...]
    aspects: tuple[str, ...]


CATEGORIES = (
    CategoryWords(
        "skincare", 0.13, 24_000, ("수분크림", "Serum", "선크림", "Cleansing Foam", "토너 패드"), ("흡수", "향", "보습")
    ),
    CategoryWords(
        "fashion-women", 0.13, 39_000, ("니트 가디건", "Linen Dress", "와이드 슬랙스", "Trench Coat"), ("핏", "원단", "색감")
    ),
    CategoryWords(
        "fashion-men", 0.10, 42_000, ("옥스포드 셔츠", "Denim Jacket", "조거 팬츠", "Knit Polo"), ("핏", "원단", "마감")
    ),
    CategoryWords(
        "kitchen", 0.09, 28_000, ("프라이팬", "Coffee Grinder", "도마 세트", "Stainless Tumbler"), ("코팅", "무게", "세척")
    ),
    CategoryWords(
        "home", 0.10, 35_000, ("호텔 수건", "Desk Lamp", "러그", "Storage Box", "암막커튼"), ("마감", "크기", "색감")
    ),
    CategoryWords(
        "electronics", 0.10, 89_000, ("무선 이어폰", "USB-C Hub", "기계식 키보드", "Power Bank"), ("배터리", "소음", "연결")
    ),
    CategoryWords(
        "food", 0.11, 15_000, ("제주 감귤", "Drip Coffee", "곤약젤리", "Granola", "한우 세트"), ("맛", "신선도", "포장")
    ),
    CategoryWords("baby", 0.06, 26_000, ("기저귀", "Baby Lotion", "이유식 큐브", "Picture Book"), ("소재", "흡수", "안전")),
    CategoryWords(
        "pet", 0.06, 21_000, ("강아지 간식", "Cat Tower", "고양이 모래", "Pet Blanket"), ("기호성", "먼지", "내구성")
    ),
    CategoryWords(
        "sports", 0.06, 45_000, ("요가매트", "Running Vest", "캠핑 의자", "Protein Bar"), ("그립", "무게", "통기성")
    ),
    CategoryWords("books", 0.04, 16_000, ("에세이", "Picture Atlas", "토익 기출", "Novel"), ("번역", "내용", "제본")),
    CategoryWords(
        "stationery", 0.02, 9_000, ("만년필", "Planner", "마스킹테이프", "Gel Pen Set"), ("필기감", "종이", "디자인")
    ),
)

BRANDS = ("하루결", "Maru&Co", "온빛", "Northfold", "달그릇", "Haneul", "소담", "Fieldnote", "누리샵", "Lumen", "바른집")

MODIFIERS = ("데일리", "Light", "프리미엄", "Classic", "저자극", "Oversize", "친환경", "Compact", "Soft", "1+1", "New")
