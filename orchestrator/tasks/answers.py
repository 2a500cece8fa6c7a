"""stub"""
from decimal import Decimal
def extract(text: str, language: str) -> Decimal | None: return None
def gold_number(gold: str) -> Decimal | None: return None
def cut(text: str) -> str: return text
