-- What a database of Fleet 4.92 has of the tables that are read, with a few rows.
CREATE TABLE hosts (
    id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    osquery_host_id VARCHAR(255) COLLATE utf8mb4_unicode_ci DEFAULT NULL UNIQUE,
    created_at TIMESTAMP NULL DEFAULT CURRENT_TIMESTAMP,
    detail_updated_at TIMESTAMP NULL DEFAULT NULL,
    node_key VARCHAR(255) COLLATE utf8mb4_bin DEFAULT NULL UNIQUE,
    hostname VARCHAR(255) NOT NULL DEFAULT '',
    uuid VARCHAR(255) NOT NULL DEFAULT '',
    platform VARCHAR(255) NOT NULL DEFAULT '',
    osquery_version VARCHAR(255) NOT NULL DEFAULT '',
    os_version VARCHAR(255) NOT NULL DEFAULT '',
    platform_like VARCHAR(255) NOT NULL DEFAULT '',
    uptime BIGINT NOT NULL DEFAULT 0,
    memory BIGINT NOT NULL DEFAULT 0,
    cpu_type VARCHAR(255) NOT NULL DEFAULT '',
    cpu_brand VARCHAR(255) NOT NULL DEFAULT '',
    cpu_physical_cores INT NOT NULL DEFAULT 0,
    cpu_logical_cores INT NOT NULL DEFAULT 0,
    hardware_vendor VARCHAR(255) NOT NULL DEFAULT '',
    hardware_model VARCHAR(255) NOT NULL DEFAULT '',
    hardware_serial VARCHAR(255) NOT NULL DEFAULT '',
    computer_name VARCHAR(255) NOT NULL DEFAULT '',
    distributed_interval INT DEFAULT 0,
    logger_tls_period INT DEFAULT 0,
    config_tls_refresh INT DEFAULT 0,
    primary_ip VARCHAR(45) NOT NULL DEFAULT '',
    primary_mac VARCHAR(17) NOT NULL DEFAULT '',
    label_updated_at TIMESTAMP NOT NULL DEFAULT '2000-01-01 00:00:00',
    last_enrolled_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    refetch_requested TINYINT(1) NOT NULL DEFAULT 0,
    team_id INT UNSIGNED DEFAULT NULL,
    public_ip VARCHAR(45) NOT NULL DEFAULT '',
    orbit_node_key VARCHAR(255) DEFAULT NULL
) DEFAULT CHARSET=utf8mb4;

CREATE TABLE host_seen_times (
    host_id INT UNSIGNED NOT NULL PRIMARY KEY, seen_time TIMESTAMP NULL DEFAULT NULL
);
CREATE TABLE host_disks (
    host_id INT UNSIGNED NOT NULL PRIMARY KEY,
    gigs_disk_space_available DECIMAL(10,2) NOT NULL DEFAULT 0,
    percent_disk_space_available DECIMAL(10,2) NOT NULL DEFAULT 0,
    gigs_total_disk_space DECIMAL(10,2) NOT NULL DEFAULT 0
);
CREATE TABLE labels (
    id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name VARCHAR(255) NOT NULL UNIQUE,
    description VARCHAR(255) DEFAULT NULL,
    query MEDIUMTEXT NOT NULL,
    platform VARCHAR(255) DEFAULT NULL,
    label_type INT UNSIGNED NOT NULL DEFAULT 1,
    label_membership_type INT UNSIGNED NOT NULL DEFAULT 0,
    team_id INT UNSIGNED DEFAULT NULL
) DEFAULT CHARSET=utf8mb4;
CREATE TABLE label_membership (
    label_id INT UNSIGNED NOT NULL, host_id INT UNSIGNED NOT NULL, PRIMARY KEY (host_id, label_id)
);
CREATE TABLE queries (
    id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    saved TINYINT(1) NOT NULL DEFAULT 0,
    name VARCHAR(255) NOT NULL,
    description MEDIUMTEXT NOT NULL,
    query MEDIUMTEXT NOT NULL,
    observer_can_run TINYINT(1) NOT NULL DEFAULT 0,
    team_id INT UNSIGNED DEFAULT NULL,
    team_id_char CHAR(10) NOT NULL DEFAULT '',
    platform VARCHAR(255) NOT NULL DEFAULT '',
    min_osquery_version VARCHAR(255) NOT NULL DEFAULT '',
    schedule_interval INT UNSIGNED NOT NULL DEFAULT 0,
    automations_enabled TINYINT UNSIGNED NOT NULL DEFAULT 0,
    logging_type VARCHAR(255) NOT NULL DEFAULT 'snapshot',
    UNIQUE (team_id_char, name)
) DEFAULT CHARSET=utf8mb4;
CREATE TABLE packs (
    id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    disabled TINYINT(1) NOT NULL DEFAULT 0,
    name VARCHAR(255) NOT NULL UNIQUE,
    description VARCHAR(255) DEFAULT NULL,
    platform VARCHAR(255) DEFAULT NULL,
    pack_type VARCHAR(255) DEFAULT NULL
) DEFAULT CHARSET=utf8mb4;
CREATE TABLE pack_targets (
    id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    pack_id INT UNSIGNED, type INT DEFAULT NULL, target_id INT UNSIGNED NOT NULL
);
CREATE TABLE scheduled_queries (
    id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    pack_id INT UNSIGNED, query_id INT UNSIGNED, `interval` INT UNSIGNED, snapshot TINYINT(1),
    removed TINYINT(1), platform VARCHAR(255) DEFAULT '', version VARCHAR(255) DEFAULT '',
    shard INT UNSIGNED, query_name VARCHAR(255) NOT NULL, name VARCHAR(255) NOT NULL,
    description VARCHAR(1023) DEFAULT '', denylist TINYINT(1)
) DEFAULT CHARSET=utf8mb4;
CREATE TABLE enroll_secrets (
    created_at TIMESTAMP NULL DEFAULT CURRENT_TIMESTAMP, secret VARCHAR(255) NOT NULL PRIMARY KEY, team_id INT UNSIGNED
);
CREATE TABLE app_config_json (id INT UNSIGNED NOT NULL DEFAULT 1 PRIMARY KEY, json_value JSON NOT NULL);
CREATE TABLE users (
    id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, password VARBINARY(255) NOT NULL,
    salt VARCHAR(255) NOT NULL, name VARCHAR(255) NOT NULL DEFAULT '', email VARCHAR(255) NOT NULL,
    global_role VARCHAR(64) DEFAULT NULL, api_only TINYINT(1) NOT NULL DEFAULT 0
);
CREATE TABLE teams (id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, name VARCHAR(255) NOT NULL);

INSERT INTO hosts (id, osquery_host_id, node_key, hostname, uuid, platform, osquery_version, os_version, memory,
    distributed_interval, config_tls_refresh, last_enrolled_at, detail_updated_at, primary_ip, public_ip, team_id)
VALUES
(1, 'UUID-1', 'abcdefghijklmnopqrstuvwxyz012+/A', 'web-1', 'UUID-1', 'ubuntu', '5.12.1', 'Ubuntu 22.04', 4294967296,
    10, 60, '2024-02-01 10:00:00', '2024-03-01 10:00:00', '10.0.0.1', '192.0.2.1', NULL),
(4000000000, 'UUID-2', 'bbcdefghijklmnopqrstuvwxyz012+/A', 'mac-2', 'UUID-2', 'darwin', '5.12.1', 'macOS 14', 0,
    0, 0, '2024-02-02 10:00:00', '2000-01-01 00:00:00', '10.0.0.2', '', 1),
(3, NULL, NULL, 'ipad', 'UUID-3', 'ipados', '', '', 0, 0, 0, '2024-02-02 10:00:00', NULL, '', '', NULL),
(4, 'UUID-4', '', 'gone', 'UUID-4', 'ubuntu', '', '', 0, 0, 0, '2024-02-02 10:00:00', NULL, '', '', NULL);
INSERT INTO host_seen_times VALUES (1, '2024-03-02 10:00:00'), (4000000000, '2024-02-03 10:00:00');
INSERT INTO host_disks VALUES (1, 12.5, 50, 25);
INSERT INTO labels (id, name, description, query, platform, label_type, label_membership_type) VALUES
(6, 'All Hosts', 'x', 'select 1;', '', 1, 0), (7, 'macOS', 'x', 'select 1 from os_version', 'darwin', 1, 0),
(12, 'web servers', 'serve', 'SELECT 1 FROM processes WHERE name = ''nginx''', '', 0, 0),
(13, 'hand-picked', NULL, '', NULL, 0, 1);
INSERT INTO label_membership (host_id, label_id) VALUES (1, 6), (1, 12), (1, 13), (4000000000, 6), (4000000000, 7);
INSERT INTO queries (id, saved, name, description, query, team_id, team_id_char, schedule_interval,
    automations_enabled, logging_type, platform) VALUES
(1, 1, 'uptime', 'how long', 'SELECT * FROM uptime', NULL, '', 300, 1, 'differential', 'linux'),
(2, 0, 'Live query of somebody', '', 'SELECT 1', NULL, '', 0, 0, 'snapshot', ''),
(3, 1, 'theirs', '', 'SELECT 1', 1, '1', 60, 1, 'snapshot', ''),
(4, 1, 'empty', '', ' ', NULL, '', 0, 0, 'snapshot', '');
INSERT INTO packs (id, name, description, platform, pack_type) VALUES
(1, 'base', 'first', '', NULL), (2, 'Global', 'Global pack', '', 'global');
INSERT INTO pack_targets (pack_id, type, target_id) VALUES (1, 0, 12), (1, 1, 1), (2, 0, 6);
INSERT INTO scheduled_queries (pack_id, query_id, `interval`, snapshot, removed, query_name, name, shard) VALUES
(1, 1, 60, 1, 0, 'uptime', 'uptime every minute', NULL), (1, 4, 60, 0, 1, 'empty', 'empty', NULL);
INSERT INTO enroll_secrets (secret, team_id) VALUES ('secret of all hosts', NULL), ('secret of a team', 1);
INSERT INTO app_config_json VALUES (1, '{"org_info":{"org_name":"Acme"},"agent_options":{"config":{"options":{"distributed_interval":10}},"overrides":{},"command_line_flags":{"verbose":true}}}');
INSERT INTO users (password, salt, name, email, global_role) VALUES
('\xff\x00', 'x', 'Ann', 'ann@example.com', 'admin'), ('x', 'x', 'Bob', 'bob@example.com', NULL);
INSERT INTO teams (name) VALUES ('workstations');
