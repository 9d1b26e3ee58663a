"""What `fold_zoo.py` is made of: the networks, the tools that fold, and what is right and what is wrong.

networks.py    which networks, and how they get their weights
case.py        one network with everything that the tools start from, made once
peers.py       the tools, each a function from a case to what became of it
judgement.py   counting BatchNorms, and when an answer is wrong
rows.py        one line of JSON for each network and tool, and the tables
"""
