-- Live queries. Which hosts have answered, and what, is not the store's: Redis has it, or control's memory.
INSERT INTO counters (name, value)
VALUES ('campaigns', 0) $KEEP(name);

CREATE TABLE IF NOT EXISTS campaigns (
    id BIGINT NOT NULL PRIMARY KEY,
    name $NAME NOT NULL,
    query_id BIGINT,
    query_text $TEXT NOT NULL,
    user_id BIGINT NOT NULL,
    user_name $NAME NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    ended_at BIGINT NOT NULL,
    status BIGINT NOT NULL,
    -- A roaring bitmap of host ids in its portable format.
    targets $BYTES NOT NULL,
    target_count BIGINT NOT NULL,
    answered BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    rows_taken BIGINT NOT NULL,
    bytes_taken BIGINT NOT NULL,
    hosts_cut BIGINT NOT NULL,
    rows_cut BIGINT NOT NULL,
    bytes_cut BIGINT NOT NULL
) $TABLE;

CREATE INDEX $GUARD campaigns_status ON campaigns (status, ended_at);
