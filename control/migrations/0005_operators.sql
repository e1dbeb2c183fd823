-- Operators, their sessions, and what they did.

CREATE TABLE IF NOT EXISTS users (
    id BIGINT NOT NULL PRIMARY KEY,
    name $NAME NOT NULL,
    email $NAME NOT NULL,
    -- In lower case, so that an address has one account.
    email_key $NAME NOT NULL,
    password_hash $NAME NOT NULL,
    role $NAME NOT NULL,
    is_api_only BIGINT NOT NULL,
    must_reset BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
) $TABLE;

CREATE UNIQUE INDEX $GUARD users_email_key ON users (email_key);

CREATE TABLE IF NOT EXISTS sessions (
    id BIGINT NOT NULL PRIMARY KEY,
    user_id BIGINT NOT NULL,
    token_hash $HASH NOT NULL,
    created_at BIGINT NOT NULL,
    used_at BIGINT NOT NULL
) $TABLE;

CREATE UNIQUE INDEX $GUARD sessions_token_hash ON sessions (token_hash);

CREATE INDEX $GUARD sessions_user ON sessions (user_id, used_at);

CREATE INDEX $GUARD sessions_used_at ON sessions (used_at);

CREATE TABLE IF NOT EXISTS activities (
    id BIGINT NOT NULL PRIMARY KEY,
    at BIGINT NOT NULL,
    -- As they were; the account may be gone. Zero: the local operator, or nobody who is known.
    actor_id BIGINT NOT NULL,
    actor_name $NAME NOT NULL,
    actor_email $NAME NOT NULL,
    address $NAME NOT NULL,
    kind $NAME NOT NULL,
    subject_kind $NAME NOT NULL,
    subject_name $NAME NOT NULL,
    subject_id BIGINT NOT NULL,
    details $TEXT NOT NULL
) $TABLE;

CREATE INDEX $GUARD activities_at ON activities (at);

INSERT INTO counters (name, value)
VALUES ('users', 0), ('sessions', 0), ('activities', 0) $KEEP(name);
