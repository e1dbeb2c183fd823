-- What a database of Kolide Fleet 3 has of the tables that are read, with a few rows.
CREATE TABLE hosts (
    id INT(10) UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    osquery_host_id VARCHAR(255) NOT NULL UNIQUE,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    deleted TINYINT(1) NOT NULL DEFAULT 0,
    detail_update_time TIMESTAMP NULL DEFAULT NULL,
    node_key VARCHAR(255) DEFAULT NULL UNIQUE,
    host_name VARCHAR(255) NOT NULL DEFAULT '',
    uuid VARCHAR(255) NOT NULL DEFAULT '',
    platform VARCHAR(255) NOT NULL DEFAULT '',
    osquery_version VARCHAR(255) NOT NULL DEFAULT '',
    os_version VARCHAR(255) NOT NULL DEFAULT '',
    physical_memory BIGINT(20) NOT NULL DEFAULT 0,
    computer_name VARCHAR(255) NOT NULL DEFAULT '',
    seen_time TIMESTAMP NULL DEFAULT NULL,
    distributed_interval INT DEFAULT 0,
    logger_tls_period INT DEFAULT 0,
    config_tls_refresh INT DEFAULT 0
) DEFAULT CHARSET=utf8;
CREATE TABLE labels (
    id INT(10) UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    deleted TINYINT(1) NOT NULL DEFAULT 0,
    name VARCHAR(255) NOT NULL UNIQUE,
    description VARCHAR(255) DEFAULT NULL,
    query VARCHAR(255) NOT NULL,
    platform VARCHAR(255) DEFAULT NULL,
    label_type INT UNSIGNED NOT NULL DEFAULT 1
) DEFAULT CHARSET=utf8;
CREATE TABLE label_query_executions (
    id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, matches TINYINT(1) NOT NULL DEFAULT 0,
    label_id INT UNSIGNED, host_id INT UNSIGNED
);
CREATE TABLE queries (
    id INT(10) UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, saved TINYINT(1) NOT NULL DEFAULT 0,
    deleted TINYINT(1) NOT NULL DEFAULT 0,
    name VARCHAR(255) NOT NULL UNIQUE, description VARCHAR(255) NOT NULL, query TEXT NOT NULL
) DEFAULT CHARSET=utf8;
CREATE TABLE packs (
    id INT(10) UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, deleted TINYINT(1) NOT NULL DEFAULT 0,
    disabled TINYINT(1) NOT NULL DEFAULT 0, name VARCHAR(255) NOT NULL UNIQUE,
    description VARCHAR(255) DEFAULT NULL, platform VARCHAR(255) DEFAULT NULL
) DEFAULT CHARSET=utf8;
CREATE TABLE pack_targets (
    id INT(10) UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    pack_id INT(10) UNSIGNED, type INT(11), target_id INT(10) UNSIGNED NOT NULL
);
CREATE TABLE scheduled_queries (
    id INT(10) UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    deleted TINYINT(1) NOT NULL DEFAULT 0, pack_id INT(10) UNSIGNED, query_id INT(10) UNSIGNED,
    `interval` INT(10) UNSIGNED, snapshot TINYINT(1), removed TINYINT(1), platform VARCHAR(255),
    version VARCHAR(255), shard INT(10) UNSIGNED
) DEFAULT CHARSET=utf8;
CREATE TABLE app_configs (
    id INT(10) UNSIGNED NOT NULL DEFAULT 1 PRIMARY KEY, org_name VARCHAR(255) NOT NULL DEFAULT '',
    osquery_enroll_secret VARCHAR(255) NOT NULL DEFAULT ''
);
CREATE TABLE osquery_options (
    id INT(10) UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, override_type INT(1) NOT NULL,
    override_identifier VARCHAR(255) NOT NULL DEFAULT '', options JSON NOT NULL
);
CREATE TABLE users (
    id INT(10) UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, username VARCHAR(255) NOT NULL,
    name VARCHAR(255) NOT NULL DEFAULT '', email VARCHAR(255) NOT NULL,
    admin TINYINT(1) NOT NULL DEFAULT 0, enabled TINYINT(1) NOT NULL DEFAULT 0
);

INSERT INTO hosts (id, osquery_host_id, created_at, deleted, detail_update_time, node_key, host_name, uuid, platform,
    physical_memory, seen_time) VALUES
(1, 'old-1', '2019-02-01 10:00:00', 0, '2020-01-01 10:00:00', 'key of old-1', 'old-1.local', 'U1', 'centos', 1024, '2020-02-01 10:00:00'),
(2, 'old-2', '2019-02-01 10:00:00', 1, NULL, 'key of old-2', 'old-2.local', 'U2', 'centos', 0, NULL);
INSERT INTO labels (id, name, query, label_type) VALUES
(1, 'All Hosts', 'select 1;', 1), (2, 'db', 'SELECT 1 FROM processes', 0);
INSERT INTO label_query_executions (matches, label_id, host_id) VALUES (1, 2, 1), (0, 1, 1);
INSERT INTO queries (id, saved, name, description, query) VALUES (5, 1, 'ports', '', 'SELECT * FROM listening_ports');
INSERT INTO packs (id, name) VALUES (1, 'old pack');
INSERT INTO pack_targets (pack_id, type, target_id) VALUES (1, 0, 2);
INSERT INTO scheduled_queries (pack_id, query_id, `interval`, snapshot, removed, shard) VALUES (1, 5, 600, 0, 1, 50);
INSERT INTO app_configs VALUES (1, 'Acme', 'old secret');
INSERT INTO osquery_options (override_type, override_identifier, options) VALUES
(0, '', '{"options":{"logger_tls_period":10}}'), (1, 'darwin', '{"options":{"logger_tls_period":20}}');
INSERT INTO users (username, name, email, admin, enabled) VALUES
('ann', 'Ann', 'ann@example.com', 1, 1), ('bob', 'Bob', 'bob@example.com', 0, 0);
