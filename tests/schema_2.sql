-- The journal, version 2. An id is an integer that only grows (see journal.py), so its order is the order of arrival.
-- Run as one script: a kill in the middle leaves an empty file, which the next start fills.
BEGIN IMMEDIATE;

CREATE TABLE deliveries (
    id          INTEGER PRIMARY KEY,
    hook        TEXT NOT NULL,
    guid        TEXT NOT NULL,
    digest      TEXT NOT NULL,
    event       TEXT NOT NULL,
    verdict     TEXT NOT NULL,
    reason      TEXT NOT NULL,
    repository  TEXT,
    ref         TEXT,
    "after"     TEXT,
    received_at REAL NOT NULL,
    UNIQUE (hook, digest),
    UNIQUE (hook, guid)
) STRICT;

CREATE TABLE deployments (
    id            INTEGER PRIMARY KEY,
    app           TEXT NOT NULL,
    "trigger"     TEXT NOT NULL,
    phase         TEXT NOT NULL DEFAULT 'queued',
    queued_at     REAL NOT NULL,
    attempts      INTEGER NOT NULL DEFAULT 0,
    revision      TEXT,
    previous      TEXT,
    subject       TEXT,
    author        TEXT,
    "release"     TEXT,
    outcome       TEXT,
    reason        TEXT NOT NULL DEFAULT '',
    started_at    REAL,
    finished_at   REAL,
    superseded_by INTEGER REFERENCES deployments (id),
    wanted        TEXT,
    migrated      TEXT,
    delivery      INTEGER REFERENCES deliveries (id) -- what asked for it; nothing did for a manual one
) STRICT;

CREATE INDEX deployments_of_app ON deployments (app);
CREATE INDEX deployments_of_delivery ON deployments (delivery, app) WHERE delivery IS NOT NULL;
CREATE INDEX deployments_unfinished ON deployments (id) WHERE outcome IS NULL;

CREATE TABLE phases (
    deployment INTEGER NOT NULL REFERENCES deployments (id),
    phase      TEXT NOT NULL,
    at         REAL NOT NULL
) STRICT;

CREATE INDEX phases_of_deployment ON phases (deployment);

CREATE TABLE steps (
    deployment INTEGER NOT NULL REFERENCES deployments (id),
    name       TEXT NOT NULL,
    command    TEXT NOT NULL,
    started_at REAL NOT NULL,
    seconds    REAL NOT NULL,
    status     TEXT NOT NULL
) STRICT;

CREATE INDEX steps_of_deployment ON steps (deployment);

CREATE TABLE steering (
    app    TEXT PRIMARY KEY,
    paused INTEGER NOT NULL,
    pinned INTEGER NOT NULL
) STRICT;

PRAGMA user_version = 2;
COMMIT;
