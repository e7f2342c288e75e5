"""Salient spans: the names and dates of a text, which closed-book question answering asks for.

spans       spans by byte offsets, and how several taggers' are put together
sentences   where sentences end
dates       dates, by grammar
names       people, places, organisations and other names, by rules
taggers     taggers by name: `builtin`, `spacy:...`, `transformers:...`
score       how well a tagger does on marked sentences
"""
