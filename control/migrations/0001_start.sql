-- Tokens in capitals after a dollar sign are replaced by store/dialect.rs. Statements end with a semicolon at the end
-- of a line and may run again: MySQL commits each of them by itself.

CREATE TABLE IF NOT EXISTS counters (
    name $NAME NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
) $TABLE;

INSERT INTO counters (name, value)
VALUES ('hosts', 0), ('changes', 0), ('specs', 7), ('carves', 0), ('pings', 0) $KEEP(name);

CREATE TABLE IF NOT EXISTS changes (
    seq BIGINT NOT NULL PRIMARY KEY,
    kind BIGINT NOT NULL,
    subject BIGINT NOT NULL,
    key_hash $HASH,
    at BIGINT NOT NULL,
    origin BIGINT NOT NULL
) $TABLE;

-- What identifies a host and does not change between enrolments.
CREATE TABLE IF NOT EXISTS hosts (
    id BIGINT NOT NULL PRIMARY KEY,
    node_key_hash $HASH NOT NULL,
    identifier $NAME NOT NULL,
    instance_id $NAME NOT NULL,
    address $NAME NOT NULL,
    enrolled_at BIGINT NOT NULL
) $TABLE;

CREATE UNIQUE INDEX $GUARD hosts_node_key_hash ON hosts (node_key_hash);

CREATE INDEX $GUARD hosts_identifier ON hosts (identifier);

-- What a host tells about itself. Every column but the key may be null, because a write may bring some of them only.
CREATE TABLE IF NOT EXISTS host_details (
    host_id BIGINT NOT NULL PRIMARY KEY,
    detail_updated_at BIGINT,
    label_updated_at BIGINT,
    refetch_requested BIGINT,
    platform $NAME,
    platform_like $NAME,
    os_version $NAME,
    osquery_version $NAME,
    hostname $NAME,
    computer_name $NAME,
    hardware_uuid $NAME,
    hardware_serial $NAME,
    hardware_model $NAME,
    hardware_vendor $NAME,
    cpu_brand $NAME,
    cpu_type $NAME,
    cpu_physical_cores BIGINT,
    cpu_logical_cores BIGINT,
    memory BIGINT,
    primary_ip $NAME,
    primary_mac $NAME,
    disk_total BIGINT,
    disk_free BIGINT,
    uptime BIGINT,
    distributed_interval BIGINT,
    config_refresh BIGINT,
    logger_tls_period BIGINT,
    details $TEXT
) $TABLE;

CREATE INDEX $GUARD host_details_hostname ON host_details (hostname);

CREATE INDEX $GUARD host_details_hardware_uuid ON host_details (hardware_uuid);

CREATE TABLE IF NOT EXISTS host_seen (
    host_id BIGINT NOT NULL PRIMARY KEY,
    seen_at BIGINT NOT NULL
) $TABLE;

CREATE TABLE IF NOT EXISTS labels (
    id BIGINT NOT NULL PRIMARY KEY,
    name $NAME NOT NULL,
    spec $TEXT NOT NULL,
    updated_at BIGINT NOT NULL
) $TABLE;

CREATE UNIQUE INDEX $GUARD labels_name ON labels (name);

-- Agents answer the queries of those that are no constant.
INSERT INTO labels (id, name, spec, updated_at)
VALUES (1, 'All Hosts', '{"name":"All Hosts","description":"All hosts which have enrolled","query":"SELECT 1","label_type":"builtin"}', 0),
(2, 'macOS', '{"name":"macOS","description":"All macOS hosts","query":"SELECT 1 FROM os_version WHERE platform = ''darwin''","platform":"darwin","label_type":"builtin"}', 0),
(3, 'Ubuntu Linux', '{"name":"Ubuntu Linux","description":"All Ubuntu hosts","query":"SELECT 1 FROM os_version WHERE platform = ''ubuntu''","platform":"linux","label_type":"builtin"}', 0),
(4, 'CentOS Linux', '{"name":"CentOS Linux","description":"All CentOS hosts","query":"SELECT 1 FROM os_version WHERE platform = ''centos'' OR name LIKE ''CentOS%''","platform":"linux","label_type":"builtin"}', 0),
(5, 'MS Windows', '{"name":"MS Windows","description":"All Windows hosts","query":"SELECT 1 FROM os_version WHERE platform = ''windows''","platform":"windows","label_type":"builtin"}', 0),
(6, 'Red Hat Linux', '{"name":"Red Hat Linux","description":"All Red Hat hosts","query":"SELECT 1 FROM os_version WHERE platform = ''rhel'' OR name LIKE ''Red Hat%''","platform":"linux","label_type":"builtin"}', 0),
(7, 'All Linux', '{"name":"All Linux","description":"All Linux hosts","query":"SELECT 1 FROM os_version WHERE platform NOT IN (''darwin'', ''windows'')","platform":"linux","label_type":"builtin"}', 0) $KEEP(id);

CREATE TABLE IF NOT EXISTS label_membership (
    host_id BIGINT NOT NULL,
    label_id BIGINT NOT NULL,
    PRIMARY KEY (host_id, label_id)
) $PAIRS;

CREATE INDEX $GUARD label_membership_label ON label_membership (label_id, host_id);

CREATE TABLE IF NOT EXISTS queries (
    id BIGINT NOT NULL PRIMARY KEY,
    name $NAME NOT NULL,
    spec $TEXT NOT NULL,
    updated_at BIGINT NOT NULL
) $TABLE;

CREATE UNIQUE INDEX $GUARD queries_name ON queries (name);

CREATE TABLE IF NOT EXISTS packs (
    id BIGINT NOT NULL PRIMARY KEY,
    name $NAME NOT NULL,
    spec $TEXT NOT NULL,
    updated_at BIGINT NOT NULL
) $TABLE;

CREATE UNIQUE INDEX $GUARD packs_name ON packs (name);

CREATE TABLE IF NOT EXISTS pack_targets (
    pack_id BIGINT NOT NULL,
    label_id BIGINT NOT NULL,
    PRIMARY KEY (pack_id, label_id)
) $PAIRS;

CREATE TABLE IF NOT EXISTS pack_queries (
    pack_id BIGINT NOT NULL,
    position BIGINT NOT NULL,
    query_name $NAME,
    spec $TEXT NOT NULL,
    PRIMARY KEY (pack_id, position)
) $TABLE;

CREATE TABLE IF NOT EXISTS app_config (
    name $NAME NOT NULL PRIMARY KEY,
    value $TEXT NOT NULL,
    updated_at BIGINT NOT NULL
) $TABLE;

CREATE TABLE IF NOT EXISTS enroll_secrets (
    secret $NAME NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL
) $TABLE;

CREATE TABLE IF NOT EXISTS carves (
    id BIGINT NOT NULL PRIMARY KEY,
    host_id BIGINT NOT NULL,
    session_hash $HASH NOT NULL,
    carve_id $NAME NOT NULL,
    request_id $NAME NOT NULL,
    block_count BIGINT NOT NULL,
    block_size BIGINT NOT NULL,
    carve_size BIGINT NOT NULL,
    next_block BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    error $TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
) $TABLE;

CREATE UNIQUE INDEX $GUARD carves_session_hash ON carves (session_hash);

CREATE INDEX $GUARD carves_created_at ON carves (created_at);
