-- The journal, version 4. An id is an integer that only grows (see arrivals.py), so its order is the order of arrival.
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
    pushes      TEXT NOT NULL DEFAULT '[]', -- a JSON list of the fields of `Push`
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
    transient     INTEGER NOT NULL DEFAULT 0,
    delivery      INTEGER REFERENCES deliveries (id) -- what asked for it; nothing did for a manual one
) STRICT;

CREATE INDEX deployments_of_app ON deployments (app);
CREATE INDEX deployments_of_delivery ON deployments (delivery, app) WHERE delivery IS NOT NULL;
CREATE INDEX deployments_unfinished ON deployments (id) WHERE outcome IS NULL;
CREATE INDEX deployments_of_revision ON deployments (revision, app) WHERE revision IS NOT NULL;
CREATE INDEX deployments_back ON deployments (previous, app) WHERE "trigger" = 'rollback';
CREATE INDEX deployments_superseded ON deployments (superseded_by) WHERE superseded_by IS NOT NULL;

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

CREATE TABLE verified (
    hook     TEXT NOT NULL,
    secret   TEXT NOT NULL, -- its name
    at       REAL NOT NULL,
    delivery INTEGER NOT NULL, -- which may have been let go of since
    PRIMARY KEY (hook, secret)
) STRICT; -- when each secret has verified a delivery last

CREATE TABLE asked (
    hook     TEXT NOT NULL,
    guid     TEXT NOT NULL,
    asked_at REAL NOT NULL,
    PRIMARY KEY (hook, guid)
) STRICT; -- deliveries that a forge was asked to make again

CREATE TABLE parked (
    id        INTEGER NOT NULL,
    kind      TEXT NOT NULL,
    problem   TEXT NOT NULL,
    parked_at REAL NOT NULL,
    "row"     TEXT NOT NULL -- a JSON object
) STRICT; -- rows that could not be read

PRAGMA user_version = 4;
COMMIT;
