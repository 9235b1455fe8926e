image = "bastion"
