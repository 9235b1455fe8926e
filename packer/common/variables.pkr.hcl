# Set by image.auto.pkrvars.hcl in the folder of each image.
variable "image" {
  type        = string
  description = "Name of the image and of its playbook, playbooks/image_<name>.yml."
}

# Set by `fab images.bake`; by hand: packer build -var source_ami=ami-... -var playbook_dir=... packer/<image>
variable "source_ami" {
  type        = string
  description = "The image to start from: Debian's for base, base for all others."
}

variable "ami_name" {
  type        = string
  description = "Name of the image that is made: <fleet>-<image>-<YYYYMMDDhhmmss>."
}

variable "region" {
  type        = string
  description = "Region the image is made in."
}

variable "ec2_endpoint" {
  type        = string
  default     = ""
  description = "Address of the EC2 API; empty means Amazon's own."
}

variable "instance_type" {
  type    = string
  default = "t3.small"
}

variable "root_device" {
  type        = string
  default     = "/dev/xvda"
  description = "Name of the source image's root device: its volume is encrypted at launch."
}

variable "disk_gb" {
  type    = number
  default = 8
}

variable "subnet_id" {
  type        = string
  default     = ""
  description = "A subnet with a route to the packages; empty means one of the default VPC's."
}

variable "ssh_interface" {
  type        = string
  default     = "public_ip"
  description = "Address of the build host that is dialled: public_ip, or private_ip from inside the VPC."
}

variable "ssh_username" {
  type    = string
  default = "admin"
}

variable "security_group_id" {
  type        = string
  default     = ""
  description = "Security group of the build host; empty lets Packer make one that is open to ssh_from."
}

variable "ssh_from" {
  type        = list(string)
  default     = ["0.0.0.0/0"]
  description = "Networks that may reach port 22 of a build host whose group Packer makes."
}

variable "ssh_keypair_name" {
  type        = string
  default     = ""
  description = "Key pair to log in with; empty lets Packer make one (RSA, until Packer 1.8)."
}

variable "ssh_private_key_file" {
  type    = string
  default = ""
}

variable "poll_seconds" {
  type        = number
  default     = 1
  description = "Seconds between two looks at a waiting instance or image."
}

variable "ansible_arguments" {
  type        = list(string)
  default     = []
  description = "More arguments for ansible-playbook, such as --extra-vars @file."
}

variable "tags" {
  type        = map(string)
  default     = {}
  description = "Tags of the image and of its snapshots."
}

variable "run_tags" {
  type        = map(string)
  default     = {}
  description = "Tags of the build host and its volume, so that leftovers of a killed bake are found."
}

variable "manifest" {
  type        = string
  default     = "packer-manifest.json"
  description = "File the result is written to."
}
