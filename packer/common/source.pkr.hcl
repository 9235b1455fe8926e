source "amazon-ebs" "image" {
  ami_name      = var.ami_name
  source_ami    = var.source_ami
  instance_type = var.instance_type
  region        = var.region
  subnet_id     = var.subnet_id

  security_group_id = var.security_group_id

  # Whoever runs the bake has checked the credentials already, against the endpoint that is really used:
  # Packer would ask Amazon's STS whatever custom_endpoint_ec2 says.
  custom_endpoint_ec2         = var.ec2_endpoint
  skip_credential_validation  = true
  skip_metadata_api_check     = true
  skip_region_validation      = true
  associate_public_ip_address = true

  # Encrypting the build host's volume makes the image encrypted; encrypt_boot would copy the whole image once more.
  launch_block_device_mappings {
    device_name           = var.root_device
    volume_type           = "gp3"
    iops                  = 3000
    throughput            = 125
    volume_size           = var.disk_gb
    encrypted             = true
    delete_on_termination = true
  }

  ssh_username                          = var.ssh_username
  ssh_interface                         = var.ssh_interface
  ssh_keypair_name                      = var.ssh_keypair_name
  ssh_private_key_file                  = var.ssh_private_key_file
  ssh_timeout                           = "5m"
  temporary_security_group_source_cidrs = var.ssh_from

  aws_polling {
    delay_seconds = var.poll_seconds
    max_attempts  = 600
  }

  tags            = var.tags
  snapshot_tags   = var.tags
  run_tags        = var.run_tags
  run_volume_tags = var.run_tags
}
