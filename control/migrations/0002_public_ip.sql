-- Where a host was last heard from; hosts.address stays where it enrolled from.
ALTER TABLE host_details ADD COLUMN public_ip $NAME;
