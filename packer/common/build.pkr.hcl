build {
  sources = ["source.amazon-ebs.image"]

  provisioner "ansible" {
    playbook_file   = "${path.root}/../../playbooks/image_${var.image}.yml"
    user            = var.ssh_username
    use_proxy       = false
    extra_arguments = var.ansible_arguments
  }

  post-processor "manifest" {
    output = var.manifest
    custom_data = {
      image      = var.image
      source_ami = var.source_ami
    }
  }
}
