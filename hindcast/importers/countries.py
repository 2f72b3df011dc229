"""Country names of the UCI Online Retail data -> ISO 3166-1 region and IANA zone.

A country with several zones gets the one most of its people live in; names that are no country get neither.
"""

from __future__ import annotations

__all__ = ["COUNTRIES", "SEVERAL_ZONES"]

COUNTRIES: dict[str, tuple[str, str]] = {
    "Australia": ("AU", "Australia/Sydney"),
    "Austria": ("AT", "Europe/Vienna"),
    "Bahrain": ("BH", "Asia/Bahrain"),
    "Belgium": ("BE", "Europe/Brussels"),
    "Brazil": ("BR", "America/Sao_Paulo"),
    "Canada": ("CA", "America/Toronto"),
    "Channel Islands": ("JE", "Europe/Jersey"),
    "Cyprus": ("CY", "Asia/Nicosia"),
    "Czech Republic": ("CZ", "Europe/Prague"),
    "Denmark": ("DK", "Europe/Copenhagen"),
    "EIRE": ("IE", "Europe/Dublin"),
    "Finland": ("FI", "Europe/Helsinki"),
    "France": ("FR", "Europe/Paris"),
    "Germany": ("DE", "Europe/Berlin"),
    "Greece": ("GR", "Europe/Athens"),
    "Hong Kong": ("HK", "Asia/Hong_Kong"),
    "Iceland": ("IS", "Atlantic/Reykjavik"),
    "Israel": ("IL", "Asia/Jerusalem"),
    "Italy": ("IT", "Europe/Rome"),
    "Japan": ("JP", "Asia/Tokyo"),
    "Korea": ("KR", "Asia/Seoul"),
    "Lebanon": ("LB", "Asia/Beirut"),
    "Lithuania": ("LT", "Europe/Vilnius"),
    "Malta": ("MT", "Europe/Malta"),
    "Netherlands": ("NL", "Europe/Amsterdam"),
    "Nigeria": ("NG", "Africa/Lagos"),
    "Norway": ("NO", "Europe/Oslo"),
    "Poland": ("PL", "Europe/Warsaw"),
    "Portugal": ("PT", "Europe/Lisbon"),
    "RSA": ("ZA", "Africa/Johannesburg"),
    "Saudi Arabia": ("SA", "Asia/Riyadh"),
    "Singapore": ("SG", "Asia/Singapore"),
    "Spain": ("ES", "Europe/Madrid"),
    "Sweden": ("SE", "Europe/Stockholm"),
    "Switzerland": ("CH", "Europe/Zurich"),
    "Thailand": ("TH", "Asia/Bangkok"),
    "USA": ("US", "America/New_York"),
    "United Arab Emirates": ("AE", "Asia/Dubai"),
    "United Kingdom": ("GB", "Europe/London"),
    "West Indies": ("", ""),
    "Bermuda": ("BM", "Atlantic/Bermuda"),
    "European Community": ("", ""),
    "Unspecified": ("", ""),
}

SEVERAL_ZONES = ("Australia", "Brazil", "Canada", "USA")
