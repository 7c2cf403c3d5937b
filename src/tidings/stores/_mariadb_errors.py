"""What MariaDB's numbers of errors mean, where an error is not the statement's own fault."""

from __future__ import annotations

from typing import Final

DEADLOCK: Final = 1213

CONTENTION: Final = {
    1020: "another transaction changed the same rows",
    1205: "others kept rows locked for more than {} s",
    DEADLOCK: "a deadlock with another transaction",
}

READ_ONLY: Final = (1290, 1792, 1836)
LOST: Final = "it cannot be reached, or closed the connection"

UNAVAILABLE: Final = {
    **dict.fromkeys(READ_ONLY, "it may only be read just now: is it a replica, or set to read_only?"),
    1021: "its disk is full",
    1030: "its storage fails",
    1037: "it is out of memory",
    1038: "it is out of memory",
    1040: "it has too many connections. Make pools smaller, or raise max_connections",
    1041: "it is out of memory",
    1044: "this user may not use it. GRANT it to the user",
    1045: "the login was refused. Are user and password right?",
    1049: "there is no such database. Create it",
    1053: "it is shutting down",
    1114: "a table is full, or its disk is",
    1129: "it has blocked this host after too many errors. FLUSH HOSTS lets it in again",
    1158: LOST,
    1159: LOST,
    1160: LOST,
    1161: LOST,
    1203: "this user has too many connections. Make pools smaller, or raise max_user_connections",
    1226: "this user has used up a limit of its own",
    1698: "the login was refused. Are user and password right?",
    1927: "the connection was killed",
    2002: LOST,
    2003: LOST,
    2006: LOST,
    2013: LOST,
    2014: LOST,
    2055: LOST,
}
