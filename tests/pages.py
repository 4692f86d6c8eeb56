"""What is in a page: its tags, and what a reader sees."""

import re
from html.parser import HTMLParser


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)


def said(text: str) -> str:
    return " ".join(re.sub("<style>.*?</style>|<[^>]+>", " ", text, flags=re.S).split())
