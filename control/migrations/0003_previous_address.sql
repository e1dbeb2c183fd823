-- From where a host enrolled before hosts.address: tells agents that take turns from one that moved.
ALTER TABLE hosts ADD COLUMN previous_address $NAME;
